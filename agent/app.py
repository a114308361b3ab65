"""The agent put together: start, loop, stop. Everything is made here and passed on.

The order is the life cycle: look at the node, load, attach, scan, self-test, ready; and at the end not
ready, detach, drain, close. What was begun is undone in reverse, whatever happens.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import agent
from agent import doctor, http, loop, preflight
from agent.armed import armed, survey, try_all
from agent.config import Config
from agent.control import ControlServer
from agent.errors import SelfTestError
from agent.http import Status
from agent.kernel import Kernel
from agent.metrics import Build, Metrics, VectorState
from agent.pipeline import Pipeline
from agent.preflight import Plan
from agent.selftest import Canary, Trial
from agent.sinks import HasFileno, JsonLines
from agent.vectors import CATALOGUE, Action, Layer

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class State:
    """What the probes and metrics tell about the agent."""

    plan: Plan
    ready: bool = False
    why_not: str = "starting"
    trials: tuple[Trial, ...] = field(default=())

    def vectors(self) -> dict[str, VectorState]:
        """Return how each vector stands on this node."""
        held = {trial.vector.id for trial in self.trials if trial.held}
        return {
            each.vector.id: VectorState(layer=each.layer, effective=each.vector.id in held)
            for each in self.plan.coverage
        }


class _Views:
    """What the HTTP server shows."""

    def __init__(self, metrics: Metrics, state: State) -> None:
        self._metrics = metrics
        self._state = state

    def metrics(self, accept: str) -> tuple[str, bytes]:
        return self._metrics.render(accept)

    def healthy(self) -> Status:
        return Status(ok=True, text="ok")

    def ready(self) -> Status:
        return Status(ok=self._state.ready, text="ready" if self._state.ready else self._state.why_not)


def run(config: Config, stdout: HasFileno = sys.stdout) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        AgentError: it cannot start, with one line that says what to change; nothing stays attached.

    """
    started = time.monotonic()
    with ExitStack() as undo:
        stop = undo.enter_context(loop.stop_signals())
        canary = Canary()  # starts while the node is looked at
        starting = undo.enter_context(ExitStack())
        starting.enter_context(canary)
        plan = survey(config)
        state = State(plan)
        metrics = Metrics(Build(version=agent.__version__, layer=plan.layer, kernel=os.uname().release))
        # Before anything is loaded, as the port may be taken; but it must end before what it shows.
        server = http.serve(config.metrics_address, _Views(metrics, state))
        serving = undo.enter_context(ExitStack())
        serving.callback(server.close)
        pipeline = Pipeline([JsonLines(stdout)], node=config.node, observe_delay=metrics.observe_delay)
        undo.callback(pipeline.close)
        programs = undo.enter_context(armed(config, plan, announce=pipeline.feed))
        kernel = programs.kernel
        control = ControlServer(
            config.socket_path, protect=programs.protected.protect, status=lambda: _status(state, kernel)
        )
        undo.callback(control.close)
        metrics.watch(kernel, pipeline, state.vectors, _layers(plan))
        undo.push(serving.pop_all())
        for line in preflight.describe(plan):
            _log.info("%s", line)

        state.trials = try_all(programs, canary)
        starting.close()
        _tell(config, plan, state.trials)
        if config.require_effective and (names := doctor.not_effective(config, plan, state.trials)):
            message = f"not effective on this node, and require-effective is set: {', '.join(names)}"
            raise SelfTestError(message)
        state.ready = True
        _log.info("ready: metrics on http://%s:%d", config.metrics_host, server.port)
        _log.info("started in %.2f s", time.monotonic() - started)

        loop.run(stop, kernel, control, programs.protected, pipeline)

        state.ready, state.why_not = False, "stopping"
        kernel.detach()
        loop.take(kernel.drain(), feed=pipeline.feed, wrapper_gone=programs.protected.wrapper_gone)
        programs.protected.announce_ends()
        _log.info("stopped: every program is detached")


def _tell(config: Config, plan: Plan, trials: tuple[Trial, ...]) -> None:
    results = {trial.vector.id: trial for trial in trials}
    for each in plan.coverage:
        action = config.action(each.vector)
        trial = results.get(each.vector.id)
        if trial is None:
            _log.warning("%s: open on this node: %s", each.vector.id, each.reason)
        elif trial.held:
            _log.info("%s: %s, self-test held (%s)", each.vector.id, action.name.lower(), trial.result.value)
        elif action is Action.DETECT and trial.counted:
            _log.info("%s: detect, self-test was seen", each.vector.id)
        else:
            _log.warning(
                "%s: %s is asked for and the self-test %s: open on this node with layer %s",
                each.vector.id,
                action.name.lower(),
                trial.result.value if trial.counted else f"{trial.result.value} unseen",
                plan.layer.name.lower(),
            )


def _layers(plan: Plan) -> list[Layer]:
    # An exec while traced and the second line are seen by a tracepoint on every layer.
    return list(dict.fromkeys((plan.layer, Layer.TRACEPOINT)))


def _status(state: State, kernel: Kernel) -> Mapping[str, Any]:
    return {
        "version": agent.__version__,
        "ready": state.ready,
        "layer": state.plan.layer.name.lower(),
        "effective": [vector.id for vector in CATALOGUE if state.vectors()[vector.id].effective],
        "processes": kernel.protected_processes(),
        "trees": kernel.protected_trees(),
    }
