"""The agent's side of Kubernetes: the pods of its node, what is told on them, and the node's own signals.

Nothing here is needed for enforcement to go on: while the API server is away, what is known stays in force,
the kernel protects what starts, and the agent says "degraded".
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.abi import Kind
from agent.armed import Armed, PodsOn
from agent.attribution import Attribution, Workload
from agent.cgroups import Cgroups
from agent.config import Config
from agent.connection import Connection
from agent.errors import NodeError
from agent.hierarchy import hierarchy
from agent.loop import Handlers
from agent.metrics import ClusterCounts, Trouble
from agent.node_signals import NodeSignals
from agent.pod_events import PodEvents
from agent.pod_watch import PodWatch
from agent.workloads import Workloads, home_of

# For how long a start waits for the API server before it says "ready", though degraded.
_PATIENCE_S = 10.0
# The pid namespace that the kernel starts with (PROC_PID_INIT_INO); its programs count in it.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC


class Cluster:
    """Everything that only a node of a cluster has; `begin` comes when the programs are armed.

    Raises:
        NodeError: the agent's container does not see the node's processes or cgroups.

    """

    def __init__(
        self,
        config: Config,
        instance: str,
        *,
        root: Path = Path("/"),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at the node and prepare; `instance` is the name of the agent's own pod."""
        found = hierarchy(root)
        if found is None:
            raise NodeError("no cgroups are mounted that tell pods apart: mount the node's /sys/fs/cgroup")
        if (root / "proc/self/ns/pid").stat().st_ino != _FIRST_PID_NAMESPACE:
            message = (
                "the agent does not see the machine's processes: set hostPID: true (a node that is itself "
                "a container, as in kind, cannot be guarded)"
            )
            raise NodeError(message)
        cgroups = Cgroups(found, root / "proc")
        connection = Connection(config.kubeconfig)
        self.pods_on = PodsOn(hierarchy=found, home_of=lambda pid: home_of(cgroups, pid))
        self.events = PodEvents(connection, node=config.node, instance=instance)
        self._config = config
        self._cgroups = cgroups
        self._connection = connection
        self._attribution = Attribution(cgroups)
        self._watch = PodWatch(connection, config.node)
        self._signals = NodeSignals(connection, config.node, instance) if config.node_signals else None
        self._workloads: Workloads | None = None
        self._monotonic = monotonic
        self._began_at = monotonic()

    def attribute(self, cgroup_id: int, pid: int) -> Mapping[str, str | None]:
        """Tell whose a process is, in the words of the schema; one that nobody can tell is counted."""
        return _in_words(self._attribution.find(cgroup_id, pid))

    def look_up(self, cgroup_id: int, pid: int) -> Mapping[str, str | None]:
        """Tell the same to somebody who only looks; from any thread."""
        return _in_words(self._attribution.find(cgroup_id, pid, count=False))

    def begin(self, programs: Armed, announce: Callable[[bytes], None]) -> Handlers:
        """Follow pods from now on; return what is to be done with the kernel's records."""
        self._workloads = workloads = Workloads(
            programs.kernel,
            programs.protected,
            self._cgroups,
            self._attribution,
            self._config,
            announce=announce,
        )
        workloads.begin()
        self._watch.start()
        self.events.enabled = self._config.pod_events
        self.events.start()
        return {
            Kind.CGROUP: workloads.cgroup_made,
            Kind.TREE_BEGINS: workloads.tree_begins,
            Kind.TREE_ENDS: workloads.wrapper_gone,
        }

    def fileno(self) -> int:
        """Return a descriptor that is readable when `handle` has something to do."""
        return self._watch.fileno()

    def handle(self) -> None:
        """Follow what the API server says."""
        if self._workloads is not None:
            self._workloads.take(self._watch.take())

    def every_second(self) -> None:
        """Follow what nobody tells."""
        if self._workloads is not None:
            self._workloads.refresh()

    def change(self, config: Config) -> None:
        """Follow a new configuration."""
        self._config = config
        self.events.enabled = config.pod_events
        if self._workloads is not None:
            self._workloads.change(config)

    def settled(self) -> bool:
        """Return whether the pods that run are protected, or cannot be asked for."""
        if self._watch.health.synced:
            self.handle()
            return True
        return self._monotonic() - self._began_at >= _PATIENCE_S

    def degraded(self) -> str:
        """Return what is missing, nothing if all is well."""
        health = self._watch.health
        if health.connected:
            return ""
        since = "since it started" if not health.synced else "now"
        reason = f": {health.error}" if health.error else ""
        return f"the API server does not tell of pods {since}{reason}; what is known stays in force"

    def ready(self, layer: str, selftest: str) -> None:
        """Sign on the node that it is protected."""
        if self._signals is not None:
            self._signals.ready(layer, selftest)

    def counts(self) -> ClusterCounts:
        """Return what metrics tell; from any thread."""
        health = self._watch.health
        workloads = self._workloads
        return ClusterCounts(
            connected=health.connected,
            errors={
                Trouble.WATCH: health.restarts,
                Trouble.EVENT: self.events.errors,
                Trouble.NODE: self._signals.errors if self._signals is not None else 0,
                Trouble.POD: health.mistakes + (workloads.mistakes if workloads is not None else 0),
            },
            pods={} if workloads is None else {each.value: n for each, n in workloads.pods().items()},
            pending=workloads.pending() if workloads is not None else 0,
            unattributed=self._attribution.unknown,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what /status tells."""
        health = self._watch.health
        counts = self.counts()
        return {
            "connected": health.connected,
            "synced": health.synced,
            "error": health.error or None,
            "pods": dict(counts.pods),
            "pending_trees": counts.pending,
            "unattributed": counts.unattributed,
            "errors": dict(counts.errors),
            "node_signals": self._signals.status if self._signals is not None else "off",
            "pod_events": "on" if self.events.enabled else "off",
            "cgroups": "v2" if self.pods_on.hierarchy.controller is None else "v1",
        }

    def close(self) -> None:
        """Withdraw what is signed, and let go. What can wait no longer than a second is left."""
        self._watch.close()
        if self._signals is not None:
            self._signals.close()
        self._connection.close()


def _in_words(found: Workload) -> Mapping[str, str | None]:
    return asdict(found) | {"where": found.where.value}
