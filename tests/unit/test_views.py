"""What is behind the paths of the HTTP server, at each moment of the agent's life."""

import json
import re
import time

import pytest
from prometheus_client import CollectorRegistry

from agent import abi, status
from agent.config import load
from agent.events import nowhere
from agent.http import Status
from agent.metrics import Build, Metrics, VectorState
from agent.preflight import Coverage, Plan
from agent.reload import ConfigFile
from agent.selftest import Result, Trial
from agent.vectors import BY_ID, Layer
from agent.views import State, Views
from tests.unit.tables import Tables

MEM, ENVIRON = BY_ID["proc-mem"], BY_ID["proc-environ"]
PLAN = Plan(
    layer=Layer.LSM,
    required=(),
    optional=(),
    coverage=(
        Coverage(vector=MEM, layer=Layer.LSM, reason=""),
        Coverage(vector=ENVIRON, layer=None, reason="no hook"),
    ),
    weaker={},
)


class Kernel(Tables):
    """A kernel that counted nothing."""

    def attempts(self, *, selftest=False):
        assert not selftest
        return {}

    def losses(self):
        return dict.fromkeys(abi.Loss, 0)

    def programs_loaded(self):
        return 0

    def runs_skipped(self):
        return 3


class Cluster:
    """What the views ask a cluster."""

    def __init__(self):
        self.missing = ""

    def degraded(self):
        return self.missing

    def as_dict(self):
        return {"connected": not self.missing}


@pytest.fixture
def state():
    return State(PLAN, load({}, {}, "node-1"))


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def views(state):
    def views(cluster=None, last_error=None):
        metrics = Metrics(Build(version="1", layer=Layer.LSM, kernel="6.1.0"), CollectorRegistry())
        return Views(metrics, state, cluster, last_error or status.LastError())

    return views


def test_a_vector_is_effective_where_the_selftest_held(state):
    assert state.vectors() == {
        "proc-mem": VectorState(layer=Layer.LSM, effective=False),
        "proc-environ": VectorState(layer=None, effective=False),
    }

    state.trials = (
        Trial(vector=MEM, result=Result.KILLED, counted=True),
        Trial(vector=ENVIRON, result=Result.DENIED, counted=False),
    )

    assert [each.effective for each in state.vectors().values()] == [True, False]


def test_it_is_ready_when_it_is_said_to_be(views, state):
    shown = views()
    assert shown.ready() == Status(ok=False, text="starting")

    state.why_not = "waiting for something"
    assert shown.ready() == Status(ok=False, text="waiting for something")

    state.ready = True
    assert shown.ready() == Status(ok=True, text="ready")


def test_without_the_api_server_it_is_ready_and_degraded(views, state, cluster):
    shown = views(cluster)
    cluster.missing = "the API server is away"
    assert shown.ready() == Status(ok=False, text="starting")

    state.ready = True
    assert shown.ready() == Status(ok=True, text="degraded: the API server is away")

    cluster.missing = ""
    assert shown.ready() == Status(ok=True, text="ready")


@pytest.mark.parametrize(("ago_s", "ok"), [(None, True), (0.0, True), (20.0, True), (31.5, False)])
def test_it_is_healthy_while_its_loop_comes_round(views, state, ago_s, ok):
    if ago_s is not None:
        state.turned_at = time.monotonic() - ago_s

    told = views().healthy()

    assert told.ok is ok
    assert re.fullmatch(r"ok" if ok else r"the loop has been stuck for \d+ s; the kernel enforces", told.text)


def test_metrics_are_as_they_are_asked_for(views):
    content_type, body = views().metrics("text/plain")

    assert content_type.startswith("text/plain")
    assert b"cloudtaser_ebpf_build_info" in body


def test_the_status_is_there_from_the_start(views):
    told = views().status()

    assert told["schema"] == "cloudtaser.status/v1"
    assert (told["node"], told["mode"], told["layer"], told["readiness"]) == (
        "node-1",
        "enforce",
        "lsm",
        "starting",
    )
    assert [row["vector"] for row in told["vectors"]] == ["proc-mem", "proc-environ"]
    assert (told["kubernetes"], told["last_error"]) == (None, None)
    assert not {"trees", "counters", "config"} & told.keys()
    json.dumps(told)


def test_the_status_tells_of_kubernetes_and_of_what_is_armed(views, state, cluster):
    last_error = status.LastError()
    last_error.text = "something"
    shown = views(cluster, last_error)
    shown.watch(Kernel(), status.Trees(), nowhere, ConfigFile(None, lambda: state.config, state.config))

    told = shown.status()

    assert told["kubernetes"] == {"connected": True}
    assert told["last_error"]["message"] == "something"
    assert told["trees"] == []
    assert told["counters"]["protected_trees"] == 0
    assert told["config"] == {"refused": None, "reloads": 0, "refusals": 0, "needs_restart": []}
    json.dumps(told)


def test_the_status_follows_the_configuration(views, state):
    shown = views()
    state.config = load({"mode": "detect"}, {}, "node-1")

    told = shown.status()

    assert told["mode"] == "detect"
    assert {row["asked"] for row in told["vectors"]} == {"detect"}
