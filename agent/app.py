"""The agent put together: start, loop, stop. Everything is made here and passed on.

The order is the life cycle: look at the node, load, attach, scan, self-test, ready; and at the end not
ready, detach, drain, close. What was begun is undone in reverse, whatever happens.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import agent
from agent import allocator, doctor, http, loop, preflight, status
from agent.abi import Kind
from agent.armed import Armed, armed, survey, try_all
from agent.cluster import Cluster
from agent.config import Config
from agent.control import ControlServer
from agent.errors import ConfigError, SelfTestError
from agent.events import nowhere
from agent.kernel import Kernel
from agent.metrics import Build, ClusterCounts, Metrics
from agent.pipeline import Pipeline
from agent.preflight import Plan
from agent.reload import ConfigFile
from agent.selftest import Canary, Trial
from agent.sinks import HasFileno, JsonLines
from agent.vectors import CATALOGUE, Action, Layer
from agent.views import State, Views

_log = logging.getLogger(__name__)


def run(config: Config, file: ConfigFile, stdout: HasFileno = sys.stdout) -> None:
    """Run the agent until SIGTERM or SIGINT; `file` is where `config` may change.

    Raises:
        AgentError: it cannot start, with one line that says what to change; nothing stays attached.

    """
    started = time.monotonic()
    allocator.keep_small()
    with ExitStack() as undo:
        last_error = undo.enter_context(status.LastError())
        stop = undo.enter_context(loop.stop_signals())
        canary = Canary()  # starts while the node is looked at
        starting = undo.enter_context(ExitStack())
        starting.enter_context(canary)
        cluster = None if config.standalone else Cluster(config, os.uname().nodename)
        plan = survey(config, pods=cluster is not None)
        state = State(plan, config)
        metrics = Metrics(Build(version=agent.__version__, layer=plan.layer, kernel=os.uname().release))
        views = Views(metrics, state, cluster, last_error)
        # Before anything is loaded, as the port may be taken; but it must end before what it shows.
        server = http.serve(config.metrics_address, views)
        serving = undo.enter_context(ExitStack())
        serving.callback(server.close)
        pipeline = _pipeline(config, metrics, cluster, stdout)
        if cluster is not None:
            undo.callback(cluster.close)
        undo.callback(pipeline.close)
        trees = status.Trees()

        def feed(record: bytes) -> None:
            trees.note(record)
            pipeline.feed(record)

        pods = cluster.pods_on if cluster is not None else None
        programs = undo.enter_context(armed(config, plan, announce=feed, pods=pods))
        kernel = programs.kernel
        control = ControlServer(
            config.socket_path,
            protect=programs.protected.protect,
            status=lambda: _brief(state, kernel),
            replace=cluster is not None,
        )
        undo.callback(control.close)
        views.watch(kernel, trees, cluster.look_up if cluster is not None else nowhere, file)
        metrics.watch(
            kernel,
            pipeline,
            state.vectors,
            _layers(plan),
            cluster=cluster.counts if cluster is not None else ClusterCounts,
            reload=lambda: file.state,
        )
        undo.push(serving.pop_all())
        for line in preflight.describe(plan):
            _log.info("%s", line)

        running = _Running(state, programs, feed, cluster, f"http://{config.metrics_host}:{server.port}")
        _prove(state, programs, canary)
        starting.close()
        running.look_whether_ready()
        _log.info("started in %.2f s", time.monotonic() - started)
        readers: list[loop.Reader] = [control]
        if cluster is not None:
            readers.append(_ClusterReader(cluster, running))
        loop.run(
            stop, kernel, take=running.take, readers=readers, every_second=lambda: running.every_second(file)
        )

        state.ready, state.why_not = False, "stopping"
        kernel.detach()
        running.take(kernel.drain())
        programs.protected.announce_ends()
        _log.info("stopped: every program is detached")


class _Running:
    """The agent in its loop: what is done with a record, and what every second."""

    def __init__(
        self,
        state: State,
        programs: Armed,
        feed: Callable[[bytes], None],
        cluster: Cluster | None,
        url: str,
    ) -> None:
        self._state = state
        self._protected = programs.protected
        self._feed = feed
        self._cluster = cluster
        self._url = url
        self._complaint = ""  # what does not fit, told once
        self._handlers: loop.Handlers = {Kind.TREE_ENDS: programs.protected.wrapper_gone}
        if cluster is not None:
            self._handlers = cluster.begin(programs, feed)

    def take(self, records: Iterable[bytes]) -> None:
        """Take what the kernel reports."""
        loop.take(records, feed=self._feed, handlers=self._handlers)

    def every_second(self, file: ConfigFile) -> None:
        """Follow what nobody tells: files, pods whose cgroups go, and the last process of a tree."""
        self._state.turned_at = time.monotonic()
        if (config := file.poll()) is not None:
            self._change(config)
        self._refresh()
        if self._cluster is not None:
            self._cluster.every_second()
        self._protected.announce_ends()
        self.look_whether_ready()

    def _refresh(self) -> None:
        complaint = ""
        try:
            self._protected.refresh()
        except ConfigError as err:  # a file that has come since is one too many
            complaint = str(err)
        if complaint and complaint != self._complaint:
            _log.error("%s", complaint)
        self._complaint = complaint

    def look_whether_ready(self) -> None:
        """Say that the node is protected as soon as it is."""
        state, cluster = self._state, self._cluster
        if state.ready:
            return
        if cluster is not None and not cluster.settled():
            state.why_not = f"waiting for the pods of this node, metrics on {self._url}"
            return
        state.ready = True
        if cluster is not None:
            held = sum(trial.held for trial in state.trials)
            cluster.ready(state.plan.layer.name.lower(), f"{held} of {len(CATALOGUE)} vectors held")
            if degraded := cluster.degraded():
                _log.warning("degraded: %s", degraded)
        _log.info("ready: metrics on %s", self._url)

    def _change(self, config: Config) -> None:
        try:
            self._protected.change(config)
        except ConfigError as err:  # more names than fit: those that did are in force
            _log.error("%s", err)
        if self._cluster is not None:
            self._cluster.change(config)
        self._state.config = config


class _ClusterReader:
    """Reads what the API server says, and looks whether that makes the agent ready."""

    def __init__(self, cluster: Cluster, running: _Running) -> None:
        self._cluster = cluster
        self._running = running

    def fileno(self) -> int:
        return self._cluster.fileno()

    def handle(self) -> None:
        self._cluster.handle()
        self._running.look_whether_ready()


def _pipeline(config: Config, metrics: Metrics, cluster: Cluster | None, stdout: HasFileno) -> Pipeline:
    return Pipeline(
        [JsonLines(stdout), *([cluster.events] if cluster is not None else [])],
        node=config.node,
        observe_delay=metrics.observe_delay,
        attribute=cluster.attribute if cluster is not None else nowhere,
    )


# The self-test, and what is said of it.
def _prove(state: State, programs: Armed, canary: Canary) -> None:
    state.trials = try_all(programs, canary)
    _tell(state.config, state.plan, state.trials)
    if state.config.require_effective and (
        names := doctor.not_effective(state.config, state.plan, state.trials)
    ):
        message = f"not effective on this node, and require-effective is set: {', '.join(names)}"
        raise SelfTestError(message)


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


def _brief(state: State, kernel: Kernel) -> Mapping[str, Any]:
    return {
        "version": agent.__version__,
        "ready": state.ready,
        "layer": state.plan.layer.name.lower(),
        "effective": [vector.id for vector in CATALOGUE if state.vectors()[vector.id].effective],
        "processes": kernel.protected_processes(),
        "trees": kernel.protected_trees(),
    }
