"""What bpftool and /proc know of programs, maps and links."""

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("prog", "map", "link")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelObject:
    """A program, a map or a link; a link has no name."""

    kind: str
    id: int
    name: str | None


def all_objects() -> set[KernelObject]:
    """Return what `bpftool prog list`, `map list` and `link list` list now."""
    return {
        KernelObject(kind=kind, id=each["id"], name=each.get("name"))
        for kind in KINDS
        for each in _list(kind)
    }


def objects_of(pid: int) -> set[KernelObject]:
    """Return what a process holds, and the maps that its programs use."""
    held = {(kind, number) for kind in KINDS for number in _held(pid, kind)}
    for program in _list("prog"):
        if ("prog", program["id"]) in held:
            held |= {("map", number) for number in program.get("map_ids", [])}
    return {each for each in all_objects() if (each.kind, each.id) in held}


def map_keys(number: int) -> list[bytes]:
    """Return the keys that a map has now."""
    told = subprocess.check_output(["bpftool", "--json", "map", "dump", "id", str(number)], timeout=60)
    # With BTF there is a key in words, too; the bytes are always told.
    return [bytes(int(byte, 16) for byte in entry["key"]) for entry in json.loads(told)]


def _list(kind: str) -> list[dict[str, Any]]:
    told = subprocess.run(
        ["bpftool", "--json", kind, "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )
    return json.loads(told.stdout or "[]")


def _held(pid: int, kind: str) -> set[int]:
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found |= {
                int(line.split()[1])
                for line in info.read_text().splitlines()
                if line.startswith(f"{kind}_id:")
            }
    return found
