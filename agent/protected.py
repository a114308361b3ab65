"""Which trees are protected, mirrored into the kernel.

From a wrapper's exec on the kernel follows its tree by itself. Here is what it cannot know: wrappers that
were running before the agent, processes that ask to be protected, and trees that are let go.
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent import abi
from agent.config import Config
from agent.errors import AgentError, ConfigError
from agent.events import TreeId
from agent.executables import Executables
from agent.hooks import While
from agent.kernel import BPF_NOEXIST, Kernel
from agent.processes import TICK_NS, Processes
from agent.rules import PodRules, Rules
from agent.vectors import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where a process lives: cgroup ids of its pod, 0 where it is in none, and of its container."""

    pod: int = 0
    cgroup: int = 0


class Protected:
    """The protected trees of this node."""

    def __init__(
        self,
        kernel: Kernel,
        config: Config,
        layer: Layer,
        *,
        announce: Callable[[bytes], None] = lambda _record: None,
        home_of: Callable[[int], Home] = lambda _pid: Home(),
        pods: PodRules | None = None,
        proc: Path = Path("/proc"),
        root: Path = Path("/"),
    ) -> None:
        """Take the kernel's side; `announce` gets the record of each tree that begins or ends here.

        `home_of` tells where a running process lives; the node's files are below `root`.
        """
        self.rules = Rules(kernel.map("cloudtaser_conf"), config, layer, pods)
        self._kernel = kernel
        self._config = config
        self._announce = announce
        self._home_of = home_of
        self._processes = Processes(proc)
        self._executables = Executables(kernel, config, self._processes, root)
        self._members = kernel.map("cloudtaser_memb")
        self._without_wrapper: dict[tuple[int, int], bytes] = {}

    def configure(self) -> None:
        """Write what the programs need to know. Call it before they attach.

        Raises:
            ConfigError: more names or files than the programs can look for.

        """
        self.rules.begin()
        self._executables.write()

    def refresh(self) -> None:
        """Follow the files that the configuration names by path.

        Raises:
            ConfigError: more files than the programs can look for.

        """
        self._executables.refresh()

    def change(self, config: Config) -> None:
        """Follow a new configuration: actions, names and files. Trees that are protected stay so.

        Raises:
            ConfigError: more names or files than the programs can look for.

        """
        self._config = config
        # First: an operator who turns everything to detect must not be held up by a name too many.
        self.rules.change(config)
        self._executables.change(config)

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
        for pid in psutil.pids():
            try:
                executable = self._processes.executable(pid)
                self._executables.exempt_if_listed(pid, executable)
                wrapper = pid != os.getpid() and self._executables.is_wrapper(pid, executable)
                if wrapper and not self.is_member(pid):
                    self.protect(pid)
            except AgentError:
                continue  # it has gone

    def protect(self, pid: int, flags: int = 0, home: Home | None = None) -> TreeId:
        """Make `pid` the root of a protected tree, with what descends from it; return the tree.

        A process that is in a tree already stays there. `home` is looked up where it is not given.

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
        self._kernel.wake(While.PROTECTING)
        self.rules.write()
        tree = abi.Tree(pid=pid, start_ns=start_ns)
        home = home or self._home_of(pid)
        if not self._insert(pid, tree, flags, home):
            raise AgentError(f"process {pid} has just ended")
        # A child that was forked before its parent was in the map is found by looking again, until a look
        # finds nothing new: from then on the kernel sees every fork.
        while sum(self._insert(child, tree, flags, home) for child in _descendants(pid)):
            pass
        if not flags & abi.MemberFlag.CANARY:
            comm = self._processes.comm(pid)
            self._announce(_tree_record(abi.Kind.TREE_BEGINS, tree, comm, home))
        return TreeId(pid=pid, start_ns=start_ns)

    def forget(self, pid: int) -> None:
        """Let go of one process; what descends from it stays protected."""
        self._members.delete(ctypes.c_uint32(pid))

    def forget_trees(self, chosen: Callable[[abi.Member], bool]) -> dict[TreeId, bytes]:
        """Let go of every member that is `chosen`; return the trees they were, each with its last record.

        A member that forks meanwhile leaves a child that is one, too, so it looks until it finds none.
        What the choice depends on must be the same throughout a tree.
        """
        gone: dict[TreeId, bytes] = {}
        while found := {pid: member for pid, member in self._kernel.members().items() if chosen(member)}:
            for pid, member in found.items():
                self._members.delete(ctypes.c_uint32(pid))
                tree = TreeId(pid=member.tree.pid, start_ns=member.tree.start_ns)
                noted = self._without_wrapper.pop((tree.pid, tree.start_ns), b"")
                gone[tree] = (
                    gone.get(tree)
                    or noted
                    or _tree_record(
                        abi.Kind.TREE_ENDS,
                        member.tree,
                        member.comm,
                        Home(pod=member.pod, cgroup=member.cgroup),
                    )
                )
        return gone

    def comm(self, pid: int) -> bytes:
        """Return the name of a running process, nothing if there is none."""
        try:
            return self._processes.comm(pid)
        except AgentError:
            return b""

    def is_member(self, pid: int) -> bool:
        """Return whether the running process is protected.

        Raises:
            AgentError: there is no such process.

        """
        known = abi.Member()
        found = self._members.lookup(ctypes.c_uint32(pid), known)
        return found and _is(known, self._processes.start_ns(pid))

    def wrapper_gone(self, record: bytes) -> bool:
        """Take the kernel's word that a wrapper has gone; its tree ends with the last that descends.

        Return False: it is told when it has ended.
        """
        # By tree, as two last threads that exit at once may both report it.
        tree = abi.TreeRecord.from_buffer_copy(record).tree
        self._without_wrapper[(tree.pid, tree.start_ns)] = record
        return False

    def announce_ends(self) -> None:
        """Announce the trees whose last process has gone since."""
        if not self._without_wrapper:
            return
        alive = {(member.tree.pid, member.tree.start_ns) for member in self._kernel.members().values()}
        for tree in self._without_wrapper.keys() - alive:
            self._announce(self._without_wrapper.pop(tree))

    def _insert(self, pid: int, tree: abi.Tree, flags: int, home: Home) -> bool:
        # True where it is new; False where it is known already, or has gone.
        key = ctypes.c_uint32(pid)
        try:
            start_ns = self._processes.start_ns(pid)
            comm = self._processes.comm(pid)
        except AgentError:
            return False
        member = abi.Member(
            tree=tree,
            start_ns=start_ns,
            slack_ns=TICK_NS - 1,
            pod=home.pod,
            cgroup=home.cgroup,
            flags=flags,
            comm=comm,
        )
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


def _tree_record(kind: abi.Kind, tree: abi.Tree, comm: bytes, home: Home) -> bytes:
    return bytes(
        abi.TreeRecord(
            header=abi.Header(
                ktime_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
                kind=kind,
                size=ctypes.sizeof(abi.TreeRecord),
            ),
            wrapper=abi.Task(start_ns=tree.start_ns, tgid=tree.pid, tid=tree.pid, comm=comm),
            tree=tree,
            cgroup=home.cgroup,
            pod=home.pod,
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
