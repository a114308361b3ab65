"""Whose a process is: pod, namespace and container, also when it has gone before its event is read.

The kernel tells the id of the cgroup, which is never another's. What the agent was told of its pods answers
for most; then the cgroup itself, which outlives its processes; and last the process, if it is still there.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from agent.cgroups import Cgroups
from agent.places import Place, place
from agent.pods import Pod

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Where(Enum):
    """In a pod, on the node outside of every pod, or nobody knows."""

    POD = "pod"
    NODE = "node"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Whose a process is; None where it is nobody's, or not known.

    `container` and `pod` are names. `pod_uid` is `metadata.uid`, or what the cgroup says as long as the API
    server has not told of the pod.
    """

    where: Where
    container: str | None = None
    container_id: str | None = None
    pod: str | None = None
    pod_uid: str | None = None
    namespace: str | None = None


NODE = Workload(where=Where.NODE)
UNKNOWN = Workload(where=Where.UNKNOWN)


class _Recent(OrderedDict[_Key, _Value]):
    """The entries used last, at most so many."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: _Key, value: _Value) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)

    def use(self, key: _Key) -> _Value | None:
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resolved:
    place: Place | None  # None: on the node, in no pod


class Attribution:
    """Finds whose a process is, and counts in `unknown` how often nobody could tell.

    Pods and containers that have gone are kept until there is no room, since their events may still come.
    """

    def __init__(self, cgroups: Cgroups, *, most_containers: int = 4096, most_pods: int = 1024) -> None:
        self.unknown = 0
        self._cgroups = cgroups
        self._guard = threading.Lock()  # the main loop learns and finds, and /status asks from its own thread
        # Apart, so that whoever makes cgroups without end cannot make us forget what we were told.
        self._learned: _Recent[int, _Resolved] = _Recent(most_containers)
        self._found: _Recent[int, _Resolved] = _Recent(most_containers)
        self._pods: _Recent[str, Pod] = _Recent(most_pods)
        # Apart from the pods, whose status forgets a container when it starts again.
        self._names: _Recent[tuple[str, str], str] = _Recent(most_containers)

    def learn_pod(self, pod: Pod) -> None:
        """Take what the API server says about a pod now."""
        with self._guard:
            self._pods.keep(pod.uid, pod)
            for container in pod.containers:
                self._names.keep((pod.uid, container.id), container.name)

    def learn_container(self, cgroup_id: int, pod_uid: str, container_id: str | None) -> None:
        """Take a cgroup of a pod's, and whose container it is if that is known.

        `pod_uid` is as in its path, which for a static pod is not the API's.
        """
        with self._guard:
            self._learned.keep(cgroup_id, _Resolved(place=Place(pod_uid=pod_uid, container_id=container_id)))

    def find(self, cgroup_id: int, pid: int, *, count: bool = True) -> Workload:
        """Return whose the process is that had this pid in this cgroup; 0 where the kernel could not tell.

        One that nobody can tell is counted, unless `count` says that this is no event but somebody who looks.
        """
        with self._guard:
            known = (
                self._learned.use(cgroup_id) or self._found.use(cgroup_id) or self._resolve(cgroup_id, pid)
            )
            if known is None:
                self.unknown += count
                return UNKNOWN
            return self._workload(known.place) if known.place else NODE

    def _resolve(self, cgroup_id: int, pid: int) -> _Resolved | None:
        path = self._cgroups.path_by_id(cgroup_id) if cgroup_id else None
        if path is None:
            path = self._cgroups.path_of(pid)
            # Pids come back: the process is believed only as far as it is in the cgroup that was told.
            if path is None or (cgroup_id and self._cgroups.id_of(path) != cgroup_id):
                return None
        found = _Resolved(place=place(path))
        if found.place is None and path.startswith("/../"):
            return None  # a cgroup namespace hides what it is in
        if cgroup_id:
            self._found.keep(cgroup_id, found)
        return found

    def _workload(self, found: Place) -> Workload:
        pod = self._pods.use(found.pod_uid)
        name = self._names.use((found.pod_uid, found.container_id)) if found.container_id else None
        return Workload(
            where=Where.POD,
            container=name,
            container_id=found.container_id,
            pod=pod.name if pod else None,
            pod_uid=pod.api_uid if pod else found.pod_uid,
            namespace=pod.namespace if pod else None,
        )
