"""The pods of this node and their containers, mirrored into the kernel.

What the API server says of a pod and what its cgroup is come from two sides, in any order; once both are
known the kernel is told, and what runs in the pod is protected or let go. Until then the kernel protects what
starts there by itself (`unknown-pods`), and such trees are not told of: most pods never asked for protection.
"""

import ctypes
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import assert_never

from agent import abi
from agent.attribution import Attribution
from agent.cgroups import Cgroups, ContainerDir
from agent.config import Config
from agent.errors import AgentError
from agent.events import TreeId
from agent.kernel import BPF_NOEXIST, Kernel
from agent.places import place
from agent.pod_cgroups import PodCgroup, PodCgroups
from agent.pod_watch import Change, PodGone, PodIs
from agent.pods import ContainerKind, Inject, Pod
from agent.protected import Home, Protected
from agent.selection import Selected, select
from agent.vectors import CATALOGUE

_log = logging.getLogger(__name__)

_KINDS: Mapping[Inject, abi.PodKind] = {
    Inject.YES: abi.PodKind.YES,
    Inject.UNSAID: abi.PodKind.UNSAID,
    Inject.NO: abi.PodKind.NO,
}
# What holds a pod's namespaces is no container of the pod; every runtime's is called so.
_PAUSE = b"pause"
_MOST_LINES = 1000  # of complaints: what pods say is their authors'


class Workloads:
    """The pods that the API server tells of, and those whose cgroups are there."""

    def __init__(
        self,
        kernel: Kernel,
        protected: Protected,
        cgroups: Cgroups,
        attribution: Attribution,
        config: Config,
        *,
        announce: Callable[[bytes], None],
    ) -> None:
        """Take the kernel's side; `announce` gets the records of trees that began or end here."""
        self._kernel = kernel
        self._protected = protected
        self._cgroups = cgroups
        self._homes = PodCgroups(kernel, protected.rules, cgroups, attribution, found=self._settle)
        self._attribution = attribution
        self._config = config
        self._announce = announce
        self._pods: dict[str, Pod] = {}
        self._selected: dict[str, Selected] = {}
        self._pod_of_uid: dict[str, str] = {}
        self._held: dict[TreeId, bytes] = {}  # what the kernel said of trees whose pod is not known yet
        self._ended: dict[TreeId, bytes] = {}  # those of them whose wrapper has gone
        self._silent: set[TreeId] = set()  # let go a moment ago: nothing is told of them any more
        self._told: set[str] = set()
        self.mistakes = 0

    def begin(self) -> None:
        """Find the pods whose cgroups are there already, so that what starts in them is seen."""
        self._homes.look()

    def take(self, changes: Iterable[Change]) -> None:
        """Follow what the API server says."""
        for change in changes:
            match change:
                case PodIs():
                    self._pod_is(change.pod)
                case PodGone():
                    self._pod_gone(change.api_uid)
                case _:
                    assert_never(change)

    def change(self, config: Config) -> None:
        """Follow a new configuration."""
        self._config = config
        for pod in list(self._pods.values()):
            self._pod_is(pod)

    def cgroup_made(self, record: bytes) -> bool:
        """Follow the kernel's word of a new cgroup. Return False: it is nobody's news."""
        self._homes.made(record)
        return False

    def tree_begins(self, record: bytes) -> bool:
        """Take the kernel's word that a wrapper has started; return whether it is to be told now."""
        began = abi.TreeRecord.from_buffer_copy(record)
        if not began.pod:
            return True
        tree = TreeId(pid=began.tree.pid, start_ns=began.tree.start_ns)
        by_pod = self._is_by_pod(tree)
        home = self._homes.of_id(began.pod)
        if home is None or not home.written:
            if by_pod:
                self._held[tree] = record
            return not by_pod
        directory = next((each for each in self._homes.containers(home) if each.id == began.cgroup), None)
        if self._stays(home, directory, began.wrapper.comm, by_pod=by_pod):
            return True
        self._let_go(lambda member: _is_tree(member, tree), quietly=True)
        self._silent.add(tree)  # it may have ended by itself, and the kernel says so
        return False

    def wrapper_gone(self, record: bytes) -> bool:
        """Take the kernel's word that a wrapper has gone. Return False: it is told when the tree has ended.

        It is not where nobody was told that it began.
        """
        gone = abi.TreeRecord.from_buffer_copy(record).tree
        tree = TreeId(pid=gone.pid, start_ns=gone.start_ns)
        if tree in self._held:
            self._ended[tree] = record  # what it leaves is protected all the same
        elif tree not in self._silent:
            self._protected.wrapper_gone(record)
        return False

    def refresh(self) -> None:
        """Forget the pods whose cgroups have gone; look for others now and then. Called every second."""
        self._homes.refresh()
        for home in self._homes.unwritten():  # there may be room for it now
            self._settle(home)
        self._forget_untold()

    def pods(self) -> dict[Inject, int]:
        """Return how many pods of this node say yes, no and nothing."""
        counted = dict.fromkeys(Inject, 0)
        for selected in self._selected.copy().values():
            counted[selected.inject] += 1
        return counted

    def pending(self) -> int:
        """Return how many trees are protected only until their pod is known."""
        written = self._homes.written()
        members = self._kernel.members().values()
        return len({(m.tree.pid, m.tree.start_ns) for m in members if m.pod and m.pod not in written})

    def _pod_is(self, pod: Pod) -> None:
        self._pods[pod.api_uid] = pod
        self._pod_of_uid[pod.uid] = pod.api_uid
        self._attribution.learn_pod(pod)
        selected = self._selected[pod.api_uid] = select(pod, self._config)
        for mistake in selected.mistakes:
            self._tell_once(f"pod {pod.namespace}/{pod.name}: {mistake}")
        if pod.containers:
            self._homes.expect(pod.uid)
        if (home := self._homes.of_uid(pod.uid)) is not None:
            self._settle(home)

    # What still runs there stays as it is until it ends: a pod that was deleted by force has not ended.
    def _pod_gone(self, api_uid: str) -> None:
        pod = self._pods.pop(api_uid, None)
        self._selected.pop(api_uid, None)
        if pod is not None and self._pod_of_uid.get(pod.uid) == api_uid:
            del self._pod_of_uid[pod.uid]

    # Both sides are known, or one of them has changed.
    def _settle(self, home: PodCgroup) -> None:
        pod = self._pods.get(self._pod_of_uid.get(home.uid, ""))
        if pod is None:
            return
        selected = self._selected[pod.api_uid]
        if not self._write(home, pod, selected):
            return
        match selected.inject:
            case Inject.YES:
                self._adopt(home, pod)
            case Inject.UNSAID:
                self._let_go(lambda member: member.pod == home.id and _by_pod(member))
            case Inject.NO:
                self._let_go(lambda member: member.pod == home.id)
            case _:
                assert_never(selected.inject)
        for tree, record in list(self._held.items()):
            if abi.TreeRecord.from_buffer_copy(record).pod == home.id:
                self._tell_held(tree, wanted=selected.inject is Inject.YES)

    def _write(self, home: PodCgroup, pod: Pod, selected: Selected) -> bool:
        action = (ctypes.c_uint8 * abi.MAX_VECTORS)()
        for vector in CATALOGUE:
            action[vector.number] = selected.actions[vector.id]
        told = abi.Pod(action=action, kind=_KINDS[selected.inject], shared_pids=pod.shared_pids)
        if bytes(told) != home.written:
            if not self._kernel.map("cloudtaser_pods").update(ctypes.c_uint64(home.id), told):
                self._tell_once("more pods than the programs can tell apart: the containers of others stay "
                                "protected as those of an unknown pod")  # fmt: skip
                return False
            home.written = bytes(told)
        rules = self._protected.rules
        shared = pod.shared_pids and selected.inject is Inject.YES
        if shared and rules.pods is not None and not rules.pods.shared:
            rules.pods.shared = True
            rules.write()
        return True

    # The pod says yes: whatever of it runs without being protected began before that was known.
    def _adopt(self, home: PodCgroup, pod: Pod) -> None:
        for directory in self._homes.containers(home):
            pid = self._cgroups.main_process(directory.path, pod.shared_pids)
            if not self._stays(home, directory, self._comm(pid), by_pod=True):
                self._let_go_container(directory)
            elif pid is not None:
                self._protect(pid, home, directory, pod)

    def _protect(self, pid: int, home: PodCgroup, directory: ContainerDir, pod: Pod) -> None:
        try:
            if pod.shared_pids:
                main = self._kernel.map("cloudtaser_main")
                main.update(ctypes.c_uint64(directory.id), ctypes.c_uint32(pid), BPF_NOEXIST)
            if not self._protected.is_member(pid):
                here = Home(pod=home.id, cgroup=directory.id)
                self._silent.discard(self._protected.protect(pid, abi.MemberFlag.OF_POD, here))
        except AgentError as err:
            # Usually it has ended. A map that is full is said in the same way, and must be heard.
            if self._comm(pid):
                self._tell_once(f"pod {pod.namespace}/{pod.name}: a container is not protected: {err}")

    # Whether a tree in this container is to be protected, given what is known of its pod.
    def _stays(self, home: PodCgroup, directory: ContainerDir | None, comm: bytes, *, by_pod: bool) -> bool:
        kind = int(abi.Pod.from_buffer_copy(home.written).kind)
        if kind == abi.PodKind.NO:
            return False
        if not by_pod:
            return True
        pod = self._pods.get(self._pod_of_uid.get(home.uid, ""))
        if kind != abi.PodKind.YES or pod is None or directory is None:
            return kind == abi.PodKind.YES
        listed = {container.id: container.kind for container in pod.containers}.get(directory.container_id)
        if listed is None:
            return comm != _PAUSE
        return listed is not ContainerKind.EPHEMERAL

    def _let_go_container(self, directory: ContainerDir) -> None:
        self._let_go(lambda member: member.cgroup == directory.id and _by_pod(member))

    def _let_go(self, chosen: Callable[[abi.Member], bool], *, quietly: bool = False) -> None:
        for tree, record in self._protected.forget_trees(chosen).items():
            self._silent.add(tree)
            self._ended.pop(tree, None)
            if self._held.pop(tree, None) is None and not quietly:
                self._announce(record)

    # What is still held when all of a pod is settled: it is kept, or it has ended by itself.
    def _tell_held(self, tree: TreeId, *, wanted: bool) -> None:
        began, ended = self._held.pop(tree), self._ended.pop(tree, b"")
        if not wanted:
            self._silent.add(tree)
            return
        self._announce(began)
        if ended:
            self._protected.wrapper_gone(ended)

    def _forget_untold(self) -> None:
        self._silent.clear()  # what the kernel said of them has long been read
        if not self._held:
            return
        members = self._kernel.members().values()
        alive = {TreeId(pid=member.tree.pid, start_ns=member.tree.start_ns) for member in members}
        for tree in self._held.keys() - alive:
            self._tell_held(tree, wanted=False)

    def _comm(self, pid: int | None) -> bytes:
        return b"" if pid is None else self._protected.comm(pid)

    # Where it has gone already nobody knows; most are.
    def _is_by_pod(self, tree: TreeId) -> bool:
        member = abi.Member()
        found = self._kernel.map("cloudtaser_memb").lookup(ctypes.c_uint32(tree.pid), member)
        return not found or not _is_tree(member, tree) or _by_pod(member)

    def _tell_once(self, text: str) -> None:
        if text not in self._told and len(self._told) < _MOST_LINES:
            self._told.add(text)
            self.mistakes += 1
            _log.warning("%s", text)


def home_of(cgroups: Cgroups, pid: int) -> Home:
    """Return where a running process lives, by the names of the cgroups above it."""
    path = cgroups.path_of(pid) or ""
    pod = container = 0
    for above in reversed((PurePosixPath(path), *PurePosixPath(path).parents)):
        found = place(str(above))
        if found is not None and found.container_id is None:
            pod = cgroups.id_of(str(above)) or 0
        elif found is not None:
            container = cgroups.id_of(str(above)) or 0
            break
    if pod and container:
        return Home(pod=pod, cgroup=container)
    return Home(cgroup=cgroups.id_of(path) or 0 if path else 0)


def _by_pod(member: abi.Member) -> bool:
    return bool(member.flags & abi.MemberFlag.OF_POD)


def _is_tree(member: abi.Member, tree: TreeId) -> bool:
    return bool(member.tree.pid == tree.pid and member.tree.start_ns == tree.start_ns)
