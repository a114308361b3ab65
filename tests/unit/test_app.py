"""What the agent does in its loop and says at its start, without a kernel."""

import ctypes
import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from agent import abi, app
from agent.armed import Armed
from agent.config import load
from agent.errors import ConfigError, SelfTestError
from agent.metrics import Build, Metrics
from agent.preflight import Coverage, Plan
from agent.selftest import Result, Trial
from agent.vectors import BY_ID, CATALOGUE, Layer
from agent.views import State
from tests.unit.tables import Tables


def plan(layer=Layer.LSM, **open_because):
    return Plan(
        layer=layer,
        required=(),
        optional=(),
        coverage=tuple(
            Coverage(
                vector=vector,
                layer=None if vector.id in open_because else layer,
                reason=open_because.get(vector.id, ""),
            )
            for vector in CATALOGUE
        ),
        weaker={},
    )


def trials(result=Result.KILLED, *, counted=True):
    return tuple(Trial(vector=vector, result=result, counted=counted) for vector in CATALOGUE)


class Protected:
    """Notes what it is asked to do."""

    def __init__(self, done):
        self.done = done
        self.refuses = False

    def refresh(self):
        self.done.append("refresh files")
        if self.refuses:
            raise ConfigError("protect-exe: more files than can be looked for")

    def announce_ends(self):
        self.done.append("announce ends")

    def wrapper_gone(self, _record):
        self.done.append("wrapper gone")
        return False

    def change(self, config):
        self.done.append(f"change to {config.mode.value}")
        if self.refuses:
            raise ConfigError("protect-exe: more names than can be looked for")


class Cluster:
    """Notes what it is asked to do, and is settled when a test says so."""

    events = None

    def __init__(self, done):
        self.done = done
        self.is_settled = True
        self.missing = ""

    def begin(self, _programs, _announce):
        return {abi.Kind.TREE_BEGINS: lambda _record: False}

    def fileno(self):
        return 7

    def handle(self):
        self.done.append("handle")

    def every_second(self):
        self.done.append("follow pods")

    def change(self, config):
        self.done.append(f"pods change to {config.mode.value}")

    def settled(self):
        return self.is_settled

    def degraded(self):
        return self.missing

    def ready(self, layer, selftest):
        self.done.append(f"sign {layer}: {selftest}")


class File:
    """A configuration file that has changed, once."""

    def __init__(self, *configs):
        self.configs = [*configs]

    def poll(self):
        return self.configs.pop() if self.configs else None


@pytest.fixture
def done():
    return []


@pytest.fixture
def state():
    return State(plan(), load({}, {}, "node-1"))


@pytest.fixture
def protected(done):
    return Protected(done)


@pytest.fixture
def cluster(done):
    return Cluster(done)


@pytest.fixture
def fed():
    return []


@pytest.fixture
def running(state, protected, fed):
    def running(cluster=None):
        programs = Armed(kernel=Tables(), protected=protected, plan=state.plan)
        return app._Running(state, programs, fed.append, cluster, "http://127.0.0.1:9")

    return running


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level(logging.INFO)


def lines(caplog):
    return [(record.levelname.lower(), record.getMessage()) for record in caplog.records]


def record(kind):
    size = ctypes.sizeof(abi.TreeRecord)
    return bytes(abi.TreeRecord(header=abi.Header(kind=kind, size=size), tree=abi.Tree(pid=7)))


BEGINS, ENDS = record(abi.Kind.TREE_BEGINS), record(abi.Kind.TREE_ENDS)


def test_alone_it_follows_trees_by_itself(running, fed, done):
    running().take([BEGINS, ENDS])

    assert (fed, done) == ([BEGINS], ["wrapper gone"])


def test_in_a_cluster_the_pods_decide_what_is_told(running, cluster, fed, done):
    running(cluster).take([BEGINS, ENDS])

    assert (fed, done) == ([ENDS], [])


def test_every_second_it_follows_what_nobody_tells(running, state, cluster, done):
    made = running(cluster)
    state.ready = True

    made.every_second(File())

    assert done == ["refresh files", "follow pods", "announce ends"]
    assert state.turned_at is not None


def test_alone_there_are_no_pods_to_follow(running, state, done):
    running().every_second(File())

    assert done == ["refresh files", "announce ends"]
    assert state.ready


@pytest.mark.parametrize("alone", [True, False])
def test_a_new_configuration_goes_to_everybody(running, state, cluster, done, alone):
    asked = load({"mode": "detect"}, {}, "node-1")
    state.ready = True

    running(None if alone else cluster).every_second(File(asked))

    assert done[0] == "change to detect"
    assert ("pods change to detect" in done) is not alone
    assert state.config is asked


def test_a_configuration_that_does_not_fit_whole_is_said_and_ends_nothing(
    running, state, cluster, protected, caplog
):
    protected.refuses = True
    asked = load({"mode": "detect"}, {}, "node-1")
    state.ready = True

    running(cluster).every_second(File(asked))

    assert lines(caplog)[0] == ("error", "protect-exe: more names than can be looked for")
    assert "pods change to detect" in protected.done
    assert state.config is asked


def test_files_that_do_not_fit_are_said_once_and_end_nothing(running, state, protected, caplog):
    state.ready = True
    made = running()
    for refuses in (True, True, False, True):
        protected.refuses = refuses
        made.every_second(File())

    assert lines(caplog) == [("error", "protect-exe: more files than can be looked for")] * 2


def test_it_is_ready_when_its_pods_are_known(running, state, cluster, done, caplog):
    made = running(cluster)
    state.trials = trials()[:-1]
    cluster.is_settled = False
    made.look_whether_ready()
    assert not state.ready
    assert state.why_not == "waiting for the pods of this node, metrics on http://127.0.0.1:9"

    cluster.is_settled = True
    reader = app._ClusterReader(cluster, made)
    assert reader.fileno() == 7
    reader.handle()
    reader.handle()

    assert state.ready
    total = len(CATALOGUE)
    assert done == ["handle", f"sign lsm: {total - 1} of {total} vectors held", "handle"]
    assert lines(caplog) == [("info", "ready: metrics on http://127.0.0.1:9")]


def test_without_the_api_server_it_is_ready_and_says_what_is_missing(running, state, cluster, caplog):
    cluster.missing = "the API server is away"
    running(cluster).look_whether_ready()

    assert state.ready
    assert lines(caplog) == [
        ("warning", "degraded: the API server is away"),
        ("info", "ready: metrics on http://127.0.0.1:9"),
    ]


##### The self-test


@pytest.fixture
def prove(state, monkeypatch):
    canary: Any = None  # it is not this one that attacks

    def prove(seen, **flags):
        state.config = load(flags, {}, "node-1")
        monkeypatch.setattr(app, "try_all", lambda _programs, _canary: seen)
        programs = Armed(kernel=Tables(), protected=Protected([]), plan=state.plan)  # type: ignore[arg-type]
        app._prove(state, programs, canary)

    return prove


def test_what_held_is_said_of_every_vector(prove, state, caplog):
    prove(trials(), require_effective=True)

    assert state.trials == trials()
    assert len(lines(caplog)) == len(CATALOGUE)
    assert ("info", "proc-mem: kill, self-test held (killed)") in lines(caplog)


SAYS = "is asked for and the self-test"


@pytest.mark.parametrize(
    ("mode", "counted", "line"),
    [
        ("detect", True, "proc-mem: detect, self-test was seen"),
        ("detect", False, f"proc-mem: detect {SAYS} leaked unseen: open on this node with layer lsm"),
        ("enforce", True, f"proc-mem: kill {SAYS} leaked: open on this node with layer lsm"),
    ],
)
def test_what_did_not_hold_is_said(prove, caplog, mode, counted, line):
    prove(trials(Result.LEAKED, counted=counted), mode=mode)

    assert ("info" if line.endswith("seen") else "warning", line) in lines(caplog)


def test_what_no_layer_watches_is_said_with_what_would_change_that(prove, state, caplog):
    state.plan = plan(**{"proc-mem": "boot with lsm=…,bpf"})

    prove(tuple(trial for trial in trials() if trial.vector is not BY_ID["proc-mem"]))

    assert ("warning", "proc-mem: open on this node: boot with lsm=…,bpf") in lines(caplog)


def test_where_it_must_hold_an_agent_that_does_not_is_no_agent(prove):
    with pytest.raises(SelfTestError) as refusal:
        prove(trials(counted=False), require_effective=True)

    names = ", ".join(vector.id for vector in CATALOGUE)
    assert str(refusal.value) == f"not effective on this node, and require-effective is set: {names}"


def test_it_need_not_hold_where_nobody_says_so(prove):
    prove(trials(counted=False))


##### The rest


@pytest.mark.parametrize(
    ("layer", "expected"),
    [(Layer.LSM, [Layer.LSM, Layer.TRACEPOINT]), (Layer.TRACEPOINT, [Layer.TRACEPOINT])],
)
def test_events_are_counted_on_the_layer_and_on_tracepoints(layer, expected):
    assert app._layers(plan(layer)) == expected


def test_the_control_socket_tells_in_brief(state):
    kernel = Tables()
    state.ready = True
    state.trials = trials()[:1]

    told = app._brief(state, kernel)

    assert told["effective"] == [CATALOGUE[0].id]
    assert (told["ready"], told["layer"], told["processes"], told["trees"]) == (True, "lsm", 0, 0)


@pytest.mark.parametrize("alone", [True, False])
def test_events_go_to_stdout_and_in_a_cluster_to_pods(tmp_path, cluster, alone):
    told = []

    class Events:
        def emit(self, event):
            told.append(event["type"])

        def close(self):
            told.append("closed")

    cluster.events = Events()
    cluster.attribute = lambda _cgroup_id, _pid: {"where": "pod"}
    metrics = Metrics(Build(version="1", layer=Layer.LSM, kernel="6.1.0"), CollectorRegistry())
    with (tmp_path / "out").open("w") as stdout:
        made = app._pipeline(load({}, {}, "node-1"), metrics, None if alone else cluster, stdout)
        made.feed(BEGINS)
        made.close()

    assert told == ([] if alone else ["tree-begins", "closed"])
    assert ('"where":"pod"' in (tmp_path / "out").read_text().replace(" ", "")) is not alone
