"""Which trees are protected and which executables are exempt, mirrored into the kernel.

From a wrapper's exec on the kernel follows its tree by itself. Here is what it cannot know: the names and
files to look for, wrappers that were running before the agent, and processes that ask to be protected.
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from agent import abi
from agent.config import Config
from agent.errors import AgentError, ConfigError
from agent.events import TreeId
from agent.kernel import BPF_NOEXIST, Kernel
from agent.processes import COMM_BYTES, TICK_NS, FileId, Processes, file_id
from agent.vectors import CATALOGUE, Layer

_RATE_WINDOW_NS = 1_000_000_000
_WRAPPERS, _EXEMPT = "cloudtaser_wexe", "cloudtaser_xexe"


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
        """Take the kernel's side; `announce` gets the record of each tree that begins or ends here."""
        self._kernel = kernel
        self._config = config
        self._layer = layer
        self._announce = announce
        self._processes = Processes(proc)
        self._members = kernel.map("cloudtaser_memb")
        self._files: dict[tuple[str, str], FileId] = {}
        self._without_wrapper: dict[tuple[int, int], bytes] = {}

    def configure(self) -> None:
        """Write what the programs need to know. Call it before they attach.

        Raises:
            ConfigError: more names or files than the programs can look for.

        """
        self._write_config(armed=False)
        names = self._kernel.map("cloudtaser_name")
        for name in self._names():
            for text, flag in ((name, abi.NameFlag.OF_FILE), (name[:COMM_BYTES], abi.NameFlag.OF_TASK)):
                flags = ctypes.c_uint32()
                key = abi.Name(text=text)
                names.lookup(key, flags)
                flags.value |= flag
                if not names.update(key, flags):
                    raise ConfigError("protect-exe: more names than can be looked for, which is 128 or more")
        self.refresh()

    def refresh(self) -> None:
        """Follow the files that the configuration names by path: an update gives them a new inode.

        A file that is missing keeps its last inode for as long as it is missing, as it is in the moment of
        an update.

        Raises:
            ConfigError: more files than the programs can look for.

        """
        wanted = [(_WRAPPERS, path) for path in self._config.protect_exe if "/" in path]
        wanted += [(_EXEMPT, path) for path in self._config.exempt_exe]
        before = {map_name: self._known(map_name) for map_name in (_WRAPPERS, _EXEMPT)}
        for map_name, path in wanted:
            if (found := file_id(Path(path))) is not None:
                self._files[(map_name, path)] = found
        for map_name, known in before.items():
            files, now = self._kernel.map(map_name), self._known(map_name)
            for gone in known - now:
                files.delete(_file_key(gone))
            for new in now - known:
                if not files.update(_file_key(new), ctypes.c_uint32(1)):
                    option = "protect-exe" if map_name == _WRAPPERS else "exempt-exe"
                    raise ConfigError(f"{option}: more files than can be looked for: name fewer")

    def scan(self) -> None:
        """Protect the wrappers that run already, and exempt the running exempt executables.

        Raises:
            ConfigError: a process named by `protect_pid` does not exist.

        """
        for pid in self._config.protect_pid:
            try:
                self.protect(pid)
            except AgentError as err:
                raise ConfigError(f"--protect-pid {pid}: {err}") from err
        exempt = self._known(_EXEMPT)
        for pid in psutil.pids():
            try:
                executable = self._processes.executable(pid)
                if executable in exempt:
                    self._exempt(pid, executable)
                if pid != os.getpid() and self._is_wrapper(pid, executable) and not self._is_member(pid):
                    self.protect(pid)
            except AgentError:
                continue  # it has gone

    def protect(self, pid: int, flags: int = 0) -> TreeId:
        """Make `pid` the root of a protected tree, with what descends from it; return the tree.

        A process that is in a tree already stays there.

        Raises:
            AgentError: there is no such process, or it cannot be protected.

        """
        if pid == 1:
            raise AgentError("process 1 is everybody's ancestor: its tree is every process, attackers too")
        if pid == os.getpid():
            raise AgentError("the agent does not protect itself")
        start_ns = self._processes.start_ns(pid)
        if not self._processes.is_process(pid):
            raise AgentError(f"{pid} is a thread: name its process")
        known = abi.Member()
        if self._members.lookup(ctypes.c_uint32(pid), known) and _is(known, start_ns):
            return TreeId(pid=known.tree.pid, start_ns=known.tree.start_ns)
        self._kernel.wake()
        self._write_config(armed=True)
        tree = abi.Tree(pid=pid, start_ns=start_ns)
        if not self._insert(pid, tree, flags):
            raise AgentError(f"process {pid} has just ended")
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

    def wrapper_gone(self, record: bytes) -> None:
        """Take the kernel's word that a wrapper has gone; its tree ends with the last that descends."""
        # By tree, as two last threads that exit at once may both report it.
        tree = abi.TreeRecord.from_buffer_copy(record).tree
        self._without_wrapper[(tree.pid, tree.start_ns)] = record

    def announce_ends(self) -> None:
        """Announce the trees whose last process has gone since."""
        if not self._without_wrapper:
            return
        alive = {(member.tree.pid, member.tree.start_ns) for member in self._kernel.members().values()}
        for tree in self._without_wrapper.keys() - alive:
            self._announce(self._without_wrapper.pop(tree))

    def _insert(self, pid: int, tree: abi.Tree, flags: int) -> bool:
        # True where it is new; False where it is known already, or has gone.
        key = ctypes.c_uint32(pid)
        try:
            start_ns = self._processes.start_ns(pid)
            comm = self._processes.comm(pid)
        except AgentError:
            return False
        member = abi.Member(tree=tree, start_ns=start_ns, slack_ns=TICK_NS - 1, flags=flags, comm=comm)
        while not self._members.update(key, member, BPF_NOEXIST):
            known = abi.Member()
            if not self._members.lookup(key, known):
                most = self._config.max_processes
                raise AgentError(f"the map of protected processes is full: raise max-processes above {most}")
            if _is(known, start_ns):
                return False
            self._members.delete(key)  # a dead process's, whose pid this is now
        try:
            same = self._processes.start_ns(pid) == start_ns
        except AgentError:
            same = False
        if not same:  # it went while we looked, and its pid may be a stranger's by now
            self._members.delete(key)
        return same

    def _exempt(self, pid: int, executable: FileId | None) -> None:
        exempt = self._kernel.map("cloudtaser_xpid")
        exempt.update(ctypes.c_uint32(pid), ctypes.c_uint64(self._processes.start_ns(pid)))
        if self._processes.executable(pid) != executable:  # an exec since we looked
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

    def _names(self) -> list[bytes]:
        return [os.fsencode(name) for name in self._config.protect_exe if "/" not in name]

    def _known(self, map_name: str) -> set[FileId]:
        return {file for (of, _), file in self._files.items() if of == map_name}

    def _is_wrapper(self, pid: int, executable: FileId | None) -> bool:
        if executable in self._known(_WRAPPERS):
            return True
        file_name, comm = self._processes.executable_name(pid), self._processes.comm(pid)
        return any(file_name == name or comm == name[:COMM_BYTES] for name in self._names())

    def _is_member(self, pid: int) -> bool:
        known = abi.Member()
        found = self._members.lookup(ctypes.c_uint32(pid), known)
        return found and _is(known, self._processes.start_ns(pid))

    def _begins(self, pid: int, tree: abi.Tree) -> bytes:
        return bytes(
            abi.TreeRecord(
                header=abi.Header(
                    ktime_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
                    kind=abi.Kind.TREE_BEGINS,
                    size=ctypes.sizeof(abi.TreeRecord),
                ),
                wrapper=abi.Task(start_ns=tree.start_ns, tgid=pid, tid=pid, comm=self._processes.comm(pid)),
                tree=tree,
            )
        )


def _is(member: abi.Member, start_ns: int) -> bool:
    # The kernel's start time is exact where it wrote the member, /proc's is cut to a tick.
    return bool(0 <= member.start_ns - start_ns < TICK_NS)


def _descendants(pid: int) -> Iterable[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _file_key(file: FileId) -> abi.FileId:
    return abi.FileId(inode=file.inode, device=file.device)
