"""Which trees are protected and which executables are exempt, mirrored into the kernel.

From a wrapper's exec on the kernel follows its tree by itself. Here is what it cannot know: the names and
files to look for, wrappers that were running before the agent, and processes that ask to be protected.
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent import abi
from agent.config import Config
from agent.errors import AgentError, ConfigError
from agent.events import TreeId
from agent.kernel import BPF_NOEXIST, Kernel
from agent.vectors import CATALOGUE, Layer

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_COMM_BYTES = abi.COMM - 1
_RATE_WINDOW_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FileId:
    """An executable file as the kernel knows it: inode, and device as major << 20 | minor."""

    inode: int
    device: int


class Protected:
    """The protected trees of this node."""

    def __init__(
        self,
        kernel: Kernel,
        config: Config,
        layer: Layer,
        *,
        announce: Callable[[bytes], None] = lambda _record: None,
        proc: Path = Path("/proc"),
    ) -> None:
        """Take the kernel's side; `announce` gets the record of each tree that begins from here."""
        self._kernel = kernel
        self._config = config
        self._layer = layer
        self._announce = announce
        self._proc = proc
        self._members = kernel.map("cloudtaser_memb")
        self._watched: dict[tuple[str, str], FileId] = {}

    def configure(self) -> None:
        """Write what the programs need to know. Call it before they attach."""
        self._write_config(armed=False)
        names = self._kernel.map("cloudtaser_name")
        for name in self._names():
            for text, flag in ((name, abi.NameFlag.OF_FILE), (name[:_COMM_BYTES], abi.NameFlag.OF_TASK)):
                flags = ctypes.c_uint32()
                key = abi.Name(text=text)
                names.lookup(key, flags)
                flags.value |= flag
                names.update(key, flags)
        self.refresh()

    def refresh(self) -> None:
        """Follow the files that the configuration names by path: an update gives them a new inode."""
        wanted = [("cloudtaser_wexe", path) for path in self._config.protect_exe if "/" in path]
        wanted += [("cloudtaser_xexe", path) for path in self._config.exempt_exe]
        for map_name, path in wanted:
            found = _file_id(Path(path))
            known = self._watched.get((map_name, path))
            if found is None or found == known:
                continue  # gone for the moment of an update, or as it was
            files = self._kernel.map(map_name)
            if known is not None:
                files.delete(_file_key(known))
            files.update(_file_key(found), ctypes.c_uint32(1))
            self._watched[(map_name, path)] = found

    def scan(self) -> None:
        """Protect the wrappers that run already, and exempt the running exempt executables.

        Raises:
            ConfigError: a process named by `protect_pid` does not exist.

        """
        for pid in self._config.protect_pid:
            try:
                self.protect(pid)
            except AgentError as err:
                message = f"--protect-pid {pid}: {err}"
                raise ConfigError(message) from err
        exempt = {file for (map_name, _), file in self._watched.items() if map_name == "cloudtaser_xexe"}
        for process in psutil.process_iter():
            if process.pid == os.getpid():
                continue
            executable = _file_id(self._proc / str(process.pid) / "exe")
            if executable in exempt:
                self._exempt(process.pid, executable)
            if self._is_wrapper(process, executable) and not self._is_member(process.pid):
                try:
                    self.protect(process.pid)
                except AgentError:
                    continue  # it has gone

    def protect(self, pid: int, flags: int = 0) -> TreeId:
        """Make `pid` the root of a protected tree, with what descends from it; return the tree.

        A process that is in a tree already stays there.

        Raises:
            AgentError: there is no such process, or it cannot be protected.

        """
        if pid == 1:
            message = "process 1 is everybody's ancestor: protecting its tree would protect attackers"
            raise AgentError(message)
        if pid == os.getpid():
            message = "the agent does not protect itself"
            raise AgentError(message)
        known = abi.Member()
        start_ns = self._start_ns(pid)
        if self._members.lookup(ctypes.c_uint32(pid), known) and known.start_ns - start_ns < _TICK_NS:
            return TreeId(pid=known.tree.pid, start_ns=known.tree.start_ns)
        self._kernel.wake()
        self._write_config(armed=True)
        tree = abi.Tree(pid=pid, start_ns=start_ns)
        self._insert(pid, tree, flags)
        # A child that was forked before its parent was in the map is found by looking again, until a look
        # finds nothing new: from then on the kernel sees every fork.
        while sum(self._insert(child, tree, flags) for child in _descendants(pid)):
            pass
        if not flags:
            self._announce(self._begins(pid, tree))
        return TreeId(pid=pid, start_ns=start_ns)

    def forget(self, pid: int) -> None:
        """Let go of one process; what descends from it stays protected."""
        self._members.delete(ctypes.c_uint32(pid))

    def _insert(self, pid: int, tree: abi.Tree, flags: int) -> bool:
        # True where it is new. The wrapper itself must exist; a descendant may have gone.
        try:
            start_ns = self._start_ns(pid)
            comm = self._comm(pid)
        except AgentError:
            if pid == tree.pid:
                raise
            return False
        member = abi.Member(tree=tree, start_ns=start_ns, slack_ns=_TICK_NS - 1, flags=flags, comm=comm)
        key = ctypes.c_uint32(pid)
        if not self._members.update(key, member, BPF_NOEXIST):
            if self._is_member(pid):
                return False
            most = self._config.max_processes
            message = f"the map of protected processes is full: raise max-processes above {most}"
            raise AgentError(message)
        try:
            same = self._start_ns(pid) == start_ns
        except AgentError:
            same = False
        if not same:  # it went while we looked, and its pid may be a stranger's by now
            self._members.delete(key)
            if pid == tree.pid:
                message = f"process {pid} has just ended"
                raise AgentError(message)
        return same

    def _exempt(self, pid: int, executable: FileId) -> None:
        exempt = self._kernel.map("cloudtaser_xpid")
        try:
            start = ctypes.c_uint64(self._start_ns(pid))
        except AgentError:
            return
        exempt.update(ctypes.c_uint32(pid), start)
        if _file_id(self._proc / str(pid) / "exe") != executable:  # an exec since we looked
            exempt.delete(ctypes.c_uint32(pid))

    def _write_config(self, *, armed: bool) -> None:
        action = (ctypes.c_uint8 * abi.MAX_VECTORS)()
        for vector in CATALOGUE:
            action[vector.number] = self._config.action(vector)
        self._kernel.map("cloudtaser_conf").update(
            ctypes.c_uint32(0),
            abi.Config(
                action=action,
                rate_window_ns=_RATE_WINDOW_NS,
                rate_burst=self._config.rate_burst,
                layer=self._layer,
                armed=armed,
            ),
        )

    def _names(self) -> Iterator[bytes]:
        return (name.encode() for name in self._config.protect_exe if "/" not in name)

    def _is_wrapper(self, process: psutil.Process, executable: FileId | None) -> bool:
        wrappers = {file for (map_name, _), file in self._watched.items() if map_name == "cloudtaser_wexe"}
        if executable in wrappers:
            return True
        try:
            file_name = (self._proc / str(process.pid) / "exe").readlink().name.encode()
            comm = self._comm(process.pid)
        except (OSError, AgentError):
            return False
        return any(file_name == name or comm == name[:_COMM_BYTES] for name in self._names())

    def _is_member(self, pid: int) -> bool:
        return self._members.lookup(ctypes.c_uint32(pid), abi.Member())

    def _start_ns(self, pid: int) -> int:
        # psutil gives the start as a wall-clock time, which moves when the clock is set.
        try:
            stat = (self._proc / str(pid) / "stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError) as err:
            message = f"there is no process {pid}"
            raise AgentError(message) from err
        return int(stat[stat.rindex(b")") + 2 :].split()[19]) * _TICK_NS

    def _comm(self, pid: int) -> bytes:
        try:
            return (self._proc / str(pid) / "comm").read_bytes().rstrip(b"\n")[:_COMM_BYTES]
        except (FileNotFoundError, ProcessLookupError) as err:
            message = f"there is no process {pid}"
            raise AgentError(message) from err

    def _begins(self, pid: int, tree: abi.Tree) -> bytes:
        return bytes(
            abi.TreeRecord(
                header=abi.Header(
                    ktime_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
                    kind=abi.Kind.TREE_BEGINS,
                    size=ctypes.sizeof(abi.TreeRecord),
                ),
                wrapper=abi.Task(start_ns=tree.start_ns, tgid=pid, tid=pid, comm=self._comm(pid)),
                tree=tree,
            )
        )


def _descendants(pid: int) -> Iterable[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _file_id(path: Path) -> FileId | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return FileId(inode=found.st_ino, device=os.major(found.st_dev) << 20 | os.minor(found.st_dev))


def _file_key(file: FileId) -> abi.FileId:
    return abi.FileId(inode=file.inode, device=file.device)
