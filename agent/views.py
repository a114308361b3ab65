"""What the HTTP server shows: metrics, the two probes and /status."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent import status
from agent.cluster import Cluster
from agent.config import Config
from agent.events import Attribute, Clocks
from agent.http import Status
from agent.kernel import Kernel
from agent.metrics import Metrics, VectorState
from agent.preflight import Plan
from agent.reload import ConfigFile
from agent.selftest import Trial

# It comes round every second; a turn of a second or two is a busy node.
_STUCK_S = 30.0


@dataclass(slots=True)
class State:
    """How far the agent is, and what it found out."""

    plan: Plan
    config: Config
    ready: bool = False
    why_not: str = "starting"
    turned_at: float | None = None  # when the loop last came round, in seconds that go on steadily
    trials: tuple[Trial, ...] = field(default=())

    def vectors(self) -> dict[str, VectorState]:
        """Return how each vector stands on this node."""
        held = {trial.vector.id for trial in self.trials if trial.held}
        return {
            each.vector.id: VectorState(layer=each.layer, effective=each.vector.id in held)
            for each in self.plan.coverage
        }


class Views:
    """What is behind the paths; `watch` adds what only an armed agent has."""

    def __init__(
        self, metrics: Metrics, state: State, cluster: Cluster | None, last_error: status.LastError
    ) -> None:
        self._metrics = metrics
        self._state = state
        self._cluster = cluster
        self._last_error = last_error
        self._armed: Callable[[], Mapping[str, Any]] = dict

    def watch(self, kernel: Kernel, trees: status.Trees, attribute: Attribute, file: ConfigFile) -> None:
        """Show these on /status from now on."""
        self._armed = lambda: {
            "trees": trees.as_list(kernel, attribute, Clocks.read()),
            "counters": status.counters(kernel),
            "config": status.config_file(file.state),
        }

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return the exposition for an Accept header."""
        return self._metrics.render(accept)

    def healthy(self) -> Status:
        """Tell whether the loop still comes round: this answers from a thread of its own."""
        turned_at = self._state.turned_at
        stuck_s = time.monotonic() - turned_at if turned_at is not None else 0.0
        if stuck_s > _STUCK_S:
            return Status(ok=False, text=f"the loop has been stuck for {stuck_s:.0f} s; the kernel enforces")
        return Status(ok=True, text="ok")

    def ready(self) -> Status:
        """Tell whether the node is protected; without the API server it is, but "degraded"."""
        if not self._state.ready:
            return Status(ok=False, text=self._state.why_not)
        degraded = self._cluster.degraded() if self._cluster is not None else ""
        return Status(ok=True, text=f"degraded: {degraded}" if degraded else "ready")

    def status(self) -> Mapping[str, Any]:
        """Return the page of /status."""
        state = self._state
        return {
            "schema": status.SCHEMA,
            "time": status.now(),
            "node": state.config.node,
            "versions": status.versions(os.uname().release),
            "readiness": self.ready().text,
            "mode": state.config.mode.value,
            "layer": state.plan.layer.name.lower(),
            "vectors": status.vectors(state.config, state.plan, state.trials),
            "kubernetes": self._cluster.as_dict() if self._cluster is not None else None,
            "last_error": self._last_error.as_dict(),
            **self._armed(),
        }
