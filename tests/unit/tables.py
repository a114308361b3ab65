"""A kernel that is nothing but its maps, and a process that is nothing but its files of /proc."""

import ctypes
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from agent import abi
from agent.hooks import While
from agent.kernel import BPF_NOEXIST, Kernel, Map

# No process has it (PID_MAX_LIMIT is 1 << 22), so that what the machine runs is not mistaken for it.
PID = (1 << 22) + 17
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Table(Map):
    """A map that keeps bytes: `room` for so many keys, and something that happens before each update."""

    def __init__(self):
        self.content: dict[bytes, bytes] = {}
        self.room = 1 << 20
        self.before_update: Callable[[], object] = lambda: None

    def update(self, key, value, flags=0):
        self.before_update()
        known = bytes(key) in self.content
        if (known and flags == BPF_NOEXIST) or (not known and len(self.content) >= self.room):
            return False
        self.content[bytes(key)] = bytes(value)
        return True

    def lookup(self, key, value):
        found = self.content.get(bytes(key))
        if found is not None:
            ctypes.memmove(ctypes.byref(value), found, len(found))
        return found is not None

    def delete(self, key):
        return self.content.pop(bytes(key), None) is not None


class Tables(Kernel):
    """A kernel that is nothing but its maps."""

    def __init__(self):
        self.tables: defaultdict[str, Table] = defaultdict(Table)
        self.members_when_woken: list[int] = []

    def wake(self, demand):
        assert demand is While.PROTECTING
        self.members_when_woken.append(len(self.tables["cloudtaser_memb"].content))

    def map(self, name):
        return self.tables[name]

    def of(self, name, key_type, value_type):
        content = self.tables[name].content.items()
        return [
            (key_type.from_buffer_copy(key), value_type.from_buffer_copy(value)) for key, value in content
        ]

    def members(self):
        found = self.of("cloudtaser_memb", ctypes.c_uint32, abi.Member)
        return {key.value: member for key, member in found}

    def names(self):
        found = self.of("cloudtaser_name", abi.Name, ctypes.c_uint32)
        return {key.text: value.value for key, value in found}

    def files(self, name):
        return {(key.inode, key.device) for key, _ in self.of(name, abi.FileId, ctypes.c_uint32)}

    def exempt(self):
        found = self.of("cloudtaser_xpid", ctypes.c_uint32, ctypes.c_uint64)
        return {key.value: value.value for key, value in found}

    def config(self):
        return abi.Config.from_buffer_copy(self.tables["cloudtaser_conf"].content[bytes(4)])


def identity(path):
    found = Path(path).stat()
    return found.st_ino, os.major(found.st_dev) << 20 | os.minor(found.st_dev)


def begin(folder, ticks, comm="a (b) c", pid=PID):
    """Let `pid` be a process that started then; what had it before is gone. Return its /proc."""
    files = folder / str(pid)
    files.mkdir(parents=True, exist_ok=True)
    fields = ["S", *(str(at) for at in range(4, 22)), str(ticks), "0", "0"]
    (files / "stat").write_text(f"{pid} ({comm}) {' '.join(fields)}\n")
    (files / "comm").write_text(f"{comm}\n")
    (files / "status").write_text(f"Name:\t{comm}\nTgid:\t{pid}\nPid:\t{pid}\n")
    return folder


def start_ticks(pid):
    """Return when a real process started."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])
