"""What /proc tells of a process that the kernel side must know: who it is, its name, its executable."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from agent.abi import COMM
from agent.errors import AgentError

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
COMM_BYTES = COMM - 1

_PF_FORKNOEXEC = 0x40  # linux/sched.h
_SYS_OPENAT2 = 437  # on every architecture
_RESOLVE_IN_ROOT = 0x10


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
        return int(self._stat(pid)[19]) * TICK_NS

    def is_runtime(self, pid: int) -> bool:
        """Return whether a process in a container is still the runtime's, which makes the container.

        It has not yet executed a program of its own, or is in the mounts of who started it: outside.
        """
        stat = self._stat(pid)
        return bool(int(stat[6]) & _PF_FORKNOEXEC) or self._mounts(pid) == self._mounts(int(stat[1]))

    def comm(self, pid: int) -> bytes:
        """Return the name that the process has for the kernel, at most 15 bytes."""
        return self._read(pid, "comm").rstrip(b"\n")[:COMM_BYTES]

    def is_process(self, pid: int) -> bool:
        """Return whether the number is a process's, and not that of one of its threads."""
        return self._status(pid, b"Tgid:") == [str(pid).encode()]

    def is_first_of_container(self, pid: int) -> bool:
        """Return whether the process is PID 1 of a pid namespace directly below the node's.

        A namespace further down is one that the container made itself.
        """
        pids = self._status(pid, b"NSpid:")
        return len(pids) == 2 and pids[1] == b"1"

    def executable(self, pid: int) -> FileId | None:
        """Return the file that the process executes; None for a kernel thread."""
        return file_id(self._proc / str(pid) / "exe")

    def executable_name(self, pid: int) -> bytes | None:
        """Return that file's name without its folder; None for a kernel thread."""
        try:
            return os.fsencode((self._proc / str(pid) / "exe").readlink().name)
        except OSError:
            return None

    # The words of one line of /proc/PID/status, whose only text from outside, the name, has no newline.
    def _status(self, pid: int, key: bytes) -> list[bytes]:
        lines = self._read(pid, "status").split(b"\n")
        return next((line.split()[1:] for line in lines if line.startswith(key)), [])

    # What comes after the name in /proc/PID/stat.
    def _stat(self, pid: int) -> list[bytes]:
        stat = self._read(pid, "stat")
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] in (b"Z", b"X"):
            raise AgentError(f"process {pid} has ended")
        return fields

    def _mounts(self, pid: int) -> str:
        try:
            return str((self._proc / str(pid) / "ns/mnt").readlink())
        except OSError:
            return f"unknown mounts of {pid}"

    def _read(self, pid: int, name: str) -> bytes:
        try:
            return (self._proc / str(pid) / name).read_bytes()
        except (FileNotFoundError, ProcessLookupError) as err:
            raise AgentError(f"there is no process {pid}") from err


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def file_id(path: Path, root: Path = Path("/")) -> FileId | None:
    """Return the identity of the file at the absolute `path`, or None where there is none.

    Below another `root`, absolute links stay in it: openat2 resolves them there (Linux 5.6).
    """
    try:
        found = path.stat() if root == Path("/") else _stat_in_root(root, path)
    except OSError:
        return None
    return FileId(inode=found.st_ino, device=os.major(found.st_dev) << 20 | os.minor(found.st_dev))


def _stat_in_root(root: Path, path: Path) -> os.stat_result:
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    how = _OpenHow(flags=os.O_PATH | os.O_CLOEXEC, resolve=_RESOLVE_IN_ROOT)
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    system_call.restype = ctypes.c_long
    try:
        opened = system_call(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_long(folder),
            os.fsencode(path),
            ctypes.byref(how),
            ctypes.c_long(ctypes.sizeof(how)),
        )
    finally:
        os.close(folder)
    if opened < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        return os.fstat(opened)
    finally:
        os.close(opened)
