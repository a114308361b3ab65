"""The cgroups of this node's pods and containers, as they come and go."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent import abi
from agent.attribution import Attribution
from agent.cgroups import Cgroups, ContainerDir, PodDir
from agent.kernel import Kernel
from agent.rules import Rules

# A record of the kernel that was lost is made up for by a look of our own.
_LOOK_EVERY = 10


@dataclass(slots=True, kw_only=True)
class PodCgroup:
    """A pod's cgroup; `uid` is as in its name, `written` what the kernel was told of the pod, if anything."""

    id: int
    path: Path
    uid: str
    written: bytes = b""
    containers: dict[int, str] = field(default_factory=dict)  # container ids by cgroup id


class PodCgroups:
    """Finds them by looking and by the kernel's word; `found` gets each pod's that is new."""

    def __init__(
        self,
        kernel: Kernel,
        rules: Rules,
        cgroups: Cgroups,
        attribution: Attribution,
        *,
        found: Callable[[PodCgroup], None],
    ) -> None:
        self._kernel = kernel
        self._rules = rules
        self._cgroups = cgroups
        self._attribution = attribution
        self._found = found
        self._parents: dict[int, Path] = {}
        self._homes: dict[int, PodCgroup] = {}
        self._home_of_uid: dict[str, int] = {}
        self._turns = 0
        self._looked = 0  # the turn of the last look for a pod's sake; the first look is in the first

    def look(self) -> None:
        """Look for all that are there."""
        self._look_for_parents()
        for parent in list(self._parents.values()):
            self._look_in(parent)

    def made(self, record: bytes) -> None:
        """Take the kernel's word of a new cgroup."""
        made = abi.CgroupRecord.from_buffer_copy(record)
        if (home := self._homes.get(made.parent)) is not None:
            self.containers(home)
            if made.id not in home.containers:  # gone again before we came: still the pod's
                self._attribution.learn_container(made.id, home.uid, None)
        elif (parent := self._parents.get(made.parent)) is not None:
            self._look_in(parent)
        if made.parent in self._parents or not self._parents:
            self._look_for_parents()

    def of_id(self, cgroup_id: int) -> PodCgroup | None:
        """Return the pod's cgroup with this id; it may be so new that nobody has said so."""
        if cgroup_id not in self._homes:
            self.look()
        return self._homes.get(cgroup_id)

    def of_uid(self, uid: str) -> PodCgroup | None:
        """Return the cgroup of the pod with this uid, as far as it is known."""
        return self._homes.get(self._home_of_uid.get(uid, 0))

    def expect(self, uid: str) -> None:
        """Look for a pod that must have one by now.

        A pod that has ended has none either, so one look a second must do for all.
        """
        if uid not in self._home_of_uid and self._looked != self._turns:
            self._looked = self._turns
            self.look()

    def containers(self, home: PodCgroup) -> list[ContainerDir]:
        """Return the containers that a pod has now."""
        found = self._cgroups.containers(home.path)
        now = {directory.id: directory.container_id for directory in found}
        for gone in home.containers.keys() - now.keys():
            self._kernel.map("cloudtaser_main").delete(ctypes.c_uint64(gone))
        for cgroup_id in now.keys() - home.containers.keys():
            self._attribution.learn_container(cgroup_id, home.uid, now[cgroup_id])
        home.containers = now
        return found

    def written(self) -> set[int]:
        """Return the ids of those of which the kernel knows what their pods say; from any thread."""
        return {home.id for home in self._homes.copy().values() if home.written}

    def unwritten(self) -> list[PodCgroup]:
        """Return those of which it does not."""
        return [home for home in self._homes.values() if not home.written]

    def refresh(self) -> None:
        """Forget those that have gone, and look for others now and then. To be called every second."""
        for home in [home for home in self._homes.values() if not home.path.exists()]:
            self._forget(home)
        self._forget_parents()
        self._turns += 1
        if self._turns % _LOOK_EVERY == 0:
            self.look()

    def _look_for_parents(self) -> None:
        for found in self._cgroups.roots():
            if found.id in self._parents:
                continue
            parent = abi.Pod(kind=abi.PodKind.PARENT)
            if not self._kernel.map("cloudtaser_pods").update(ctypes.c_uint64(found.id), parent):
                continue
            self._parents[found.id] = found.path
            self._look_in(found.path)
            self._expect_parents(any_parent=False)

    def _look_in(self, parent: Path) -> None:
        for found in self._cgroups.pods(parent):
            if found.id not in self._homes:
                self._add(found)

    def _add(self, found: PodDir) -> None:
        home = PodCgroup(id=found.id, path=found.path, uid=found.pod_uid)
        self._homes[home.id] = home
        self._home_of_uid[home.uid] = home.id
        self.containers(home)
        self._found(home)

    def _forget(self, home: PodCgroup) -> None:
        self.containers(home)
        self._kernel.map("cloudtaser_pods").delete(ctypes.c_uint64(home.id))
        del self._homes[home.id]
        if self._home_of_uid.get(home.uid) == home.id:
            del self._home_of_uid[home.uid]

    # Where all have gone, whatever is made next may be one.
    def _forget_parents(self) -> None:
        gone = [each for each, path in self._parents.items() if not _is_cgroup(path, each)]
        for each in gone:
            self._kernel.map("cloudtaser_pods").delete(ctypes.c_uint64(each))
            del self._parents[each]
        if gone and not self._parents:
            self._expect_parents(any_parent=True)
            self._look_for_parents()

    def _expect_parents(self, *, any_parent: bool) -> None:
        pods = self._rules.pods
        if pods is not None and pods.any_parent is not any_parent:
            pods.any_parent = any_parent
            self._rules.write()


def _is_cgroup(path: Path, cgroup_id: int) -> bool:
    try:
        return path.stat().st_ino == cgroup_id
    except OSError:
        return False
