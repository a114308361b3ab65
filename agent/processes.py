"""What /proc tells of a process that the kernel side must know: who it is, its name, its executable."""

import os
from dataclasses import dataclass
from pathlib import Path

from agent.abi import COMM
from agent.errors import AgentError

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
COMM_BYTES = COMM - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FileId:
    """An executable file as the kernel knows it: inode, and device as major << 20 | minor."""

    inode: int
    device: int


class Processes:
    """The processes under one /proc.

    Every method raises an `AgentError` for a process that does not exist or has gone.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def start_ns(self, pid: int) -> int:
        """Return when the process started: nanoseconds since boot, cut to a clock tick.

        psutil gives it as a wall-clock time, which moves when the clock is set. A zombie has ended.
        """
        stat = self._read(pid, "stat")
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] in (b"Z", b"X"):
            raise AgentError(f"process {pid} has ended")
        return int(fields[19]) * TICK_NS

    def comm(self, pid: int) -> bytes:
        """Return the name that the process has for the kernel, at most 15 bytes."""
        return self._read(pid, "comm").rstrip(b"\n")[:COMM_BYTES]

    def is_process(self, pid: int) -> bool:
        """Return whether the number is a process's, and not that of one of its threads."""
        for line in self._read(pid, "status").splitlines():
            if line.startswith(b"Tgid:"):
                return int(line.split()[1]) == pid
        return False

    def executable(self, pid: int) -> FileId | None:
        """Return the file that the process executes; None for a kernel thread."""
        return file_id(self._proc / str(pid) / "exe")

    def executable_name(self, pid: int) -> bytes | None:
        """Return that file's name without its folder; None for a kernel thread."""
        try:
            return os.fsencode((self._proc / str(pid) / "exe").readlink().name)
        except OSError:
            return None

    def _read(self, pid: int, name: str) -> bytes:
        try:
            return (self._proc / str(pid) / name).read_bytes()
        except (FileNotFoundError, ProcessLookupError) as err:
            raise AgentError(f"there is no process {pid}") from err


def file_id(path: Path) -> FileId | None:
    """Return the identity of the file at `path`, or None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileId(inode=found.st_ino, device=os.major(found.st_dev) << 20 | os.minor(found.st_dev))
