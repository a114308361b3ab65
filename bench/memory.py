"""What a process holds in memory, by the kernel's own account."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_FIELD = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes: all that is resident, the part that is no file's, and with shared pages divided by sharers."""

    resident_bytes: int
    anonymous_bytes: int
    proportional_bytes: int


def of_process(pid: int, proc: Path = Path("/proc")) -> Memory:
    """Read a process's smaps_rollup."""
    fields = {
        name: int(size) * 1024
        for name, size in _FIELD.findall((proc / str(pid) / "smaps_rollup").read_text())
    }
    return Memory(
        resident_bytes=fields["Rss"],
        anonymous_bytes=fields["Anonymous"],
        proportional_bytes=fields["Pss"],
    )


def total(memories: Iterable[Memory]) -> Memory:
    """Add up; resident memory that is shared is then counted more than once."""
    every = list(memories)
    return Memory(
        resident_bytes=sum(memory.resident_bytes for memory in every),
        anonymous_bytes=sum(memory.anonymous_bytes for memory in every),
        proportional_bytes=sum(memory.proportional_bytes for memory in every),
    )


def family(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for each in found:
        for children in (proc / str(each) / "task").glob("*/children"):
            with suppress(FileNotFoundError):
                found.extend(int(child) for child in children.read_text().split())
    return found
