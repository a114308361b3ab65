"""The agent put together: start, loop, stop. Everything is made here and passed on.

The order is the life cycle: look at the node, load, attach, scan, self-test, ready; and at the end not
ready, detach, drain, close. What was begun is undone in reverse, whatever happens.
"""

import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import agent
from agent import doctor, http, preflight, selftest
from agent.btf import Btf
from agent.config import Config
from agent.control import ControlServer
from agent.errors import LoadError, SelfTestError
from agent.events import is_tree_end
from agent.http import Status
from agent.kernel import Kernel, Loading
from agent.libbpf import Libbpf
from agent.metrics import Build, Metrics, VectorState
from agent.pipeline import Pipeline
from agent.preflight import Plan
from agent.protected import Protected
from agent.selftest import Canary, Trial
from agent.sinks import JsonLines, Sink
from agent.vectors import CATALOGUE, Action, Layer

_log = logging.getLogger(__name__)

# How often the files that the configuration names are looked at again.
_REFRESH_SECONDS = 1.0
_PAGE_BYTES = 4096

# How long nothing has been protected before the costly programs go: wrappers restart.
_REST_AFTER_SECONDS = 10.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Armed:
    """Programs that are attached and know what to protect."""

    kernel: Kernel
    protected: Protected
    plan: Plan


@contextmanager
def armed(config: Config, plan: Plan, *, announce: Any = lambda _record: None) -> Iterator[Armed]:
    """Load and attach what `plan` says, protect what runs already; let go of everything at the end.

    Raises:
        NodeError: a program does not compile, load or attach.
        ConfigError: a process that is to be protected does not exist.

    """
    loading = Loading(
        (*plan.required, *plan.optional),
        {"CT_MAX_PROCESSES": config.max_processes, "CT_RING_PAGES": max(1, config.ring_bytes // _PAGE_BYTES)},
    )
    with ExitStack() as undo:
        undo.callback(loading.abandon)
        kernel = Kernel(Libbpf(), loading.finish())
        undo.callback(kernel.close)
        if "remote_memory" in (*plan.required, *plan.optional):
            kernel.set_paths(Path("/proc/kallsyms"))
        protected = Protected(kernel, config, plan.layer, announce=announce)
        protected.configure()
        for refused in kernel.attach(plan.required, plan.optional):
            _log.warning("the second line %s does not attach; the first is complete", refused)
        protected.scan()
        yield Armed(kernel=kernel, protected=protected, plan=plan)


def survey(config: Config) -> Plan:
    """Look at this node and choose a layer, or raise a `NodeError`."""
    libbpf = Libbpf()
    with Btf(libbpf) as btf:
        return preflight.plan(preflight.examine(libbpf, btf), config.layer)


def try_all(armed_programs: Armed, canary: Canary) -> tuple[Trial, ...]:
    """Attack the canary through every vector that the node's layer covers."""
    return selftest.run(
        canary,
        protect=armed_programs.protected.protect,
        forget=armed_programs.protected.forget,
        attempts=lambda: armed_programs.kernel.attempts(selftest=True),
        vectors=[each.vector for each in armed_programs.plan.coverage if each.layer is not None],
    )


def run(config: Config, stdout: Any = sys.stdout) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        AgentError: it cannot start, with one line that says what to change; nothing stays attached.

    """
    started = time.monotonic()
    with ExitStack() as undo:
        stop = undo.enter_context(_stop_signals())
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
        sinks: list[Sink] = [JsonLines(stdout)]
        pipeline = Pipeline(sinks, node=config.node, observe_delay=metrics.observe_delay)
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

        _loop(stop, kernel, control, programs.protected, pipeline)

        state.ready, state.why_not = False, "stopping"
        kernel.detach()
        _take(kernel.drain(), programs.protected, pipeline)
        programs.protected.announce_ends()
        _log.info("stopped: every program is detached")


def _loop(
    stop: socket.socket, kernel: Kernel, control: ControlServer, protected: Protected, pipeline: Pipeline
) -> None:
    costly = _CostlyPrograms(kernel)
    with selectors.DefaultSelector() as selector:
        selector.register(stop, selectors.EVENT_READ)
        selector.register(kernel, selectors.EVENT_READ)
        control.register(selector)
        refresh_at = time.monotonic()
        while True:
            records = kernel.drain()
            now = time.monotonic()
            # Before the records are told: who reads that a tree began may rely on all programs.
            costly.follow(now)
            _take(records, protected, pipeline)
            if now >= refresh_at:
                protected.refresh()
                protected.announce_ends()
                refresh_at = now + _REFRESH_SECONDS
            for key, _ in selector.select(max(0.0, refresh_at - now)):
                if key.fileobj is stop:
                    return
                if key.data is not None:
                    key.data()


def _take(records: list[bytes], protected: Protected, pipeline: Pipeline) -> None:
    for record in records:
        if is_tree_end(record):
            protected.wrapper_gone(record)
        else:
            pipeline.feed(record)


class _CostlyPrograms:
    """Attached while something is protected and for a while after; a failure to attach is told, not fatal."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._rest_at = time.monotonic() + _REST_AFTER_SECONDS
        self._failed = False

    def follow(self, now: float) -> None:
        if not self._kernel.protects():
            if now >= self._rest_at:
                self._kernel.rest()
            return
        self._rest_at = now + _REST_AFTER_SECONDS
        try:
            self._kernel.wake()
            self._failed = False
        except LoadError as err:
            if not self._failed:
                _log.error("%s: what it watches is open until it does", err)
            self._failed = True


@contextmanager
def _stop_signals() -> Iterator[socket.socket]:
    """Yield a socket that becomes readable with SIGTERM or SIGINT; the handlers themselves do nothing."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003 - socket's own signature
    ours.setblocking(False)  # noqa: FBT003
    previous_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ours
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        ours.close()
        theirs.close()


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
