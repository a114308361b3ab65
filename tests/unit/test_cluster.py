"""The agent's side of Kubernetes, with an API server and a kernel that is nothing but its maps."""

import json
import select
import shutil
import time
from pathlib import Path

import pytest

from agent import abi
from agent.armed import Armed
from agent.cluster import Cluster
from agent.config import load
from agent.errors import NodeError
from agent.node_signals import AGENT_ANNOTATION, LAYER_LABEL
from agent.pod_watch import WatchHealth
from agent.preflight import Plan
from agent.protected import Home, Protected
from agent.vectors import BY_ID, Action, Layer
from tests.api_server import NODE, node, pod
from tests.unit.tables import PID, Tables, begin

SECONDS = 20.0  # for what should take milliseconds
APP = "0a1b2c3d" * 8
V2 = "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = "34 31 0:31 / /sys/fs/cgroup rw - cgroup cgroup rw,memory\n"
YES = {"cloudtaser.io/inject": "true"}


@pytest.fixture
def server(server):
    server.put_node(node())
    return server


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Machine:
    """A node in a folder, as the agent finds it."""

    def __init__(self, folder, monkeypatch):
        self.root = folder / "root"
        self.cgroups = self.root / "sys/fs/cgroup"
        self.cgroups.mkdir(parents=True)
        namespace = self.root / "proc/self/ns/pid"
        namespace.parent.mkdir(parents=True)
        namespace.touch()
        monkeypatch.setattr("agent.cluster._FIRST_PID_NAMESPACE", namespace.stat().st_ino)
        (self.root / "proc/cgroups").write_text("#subsys_name\nmemory\t7\t80\t1\n")
        self.mounts(V2)

    def mounts(self, mountinfo):
        (self.root / "proc/self/mountinfo").write_text(mountinfo)

    def run(self, uid, container=APP, pid=PID):
        """Let a container run in a pod; return their cgroup ids."""
        path = f"/kubepods/pod{uid}/{container}"
        directory = Path(f"{self.cgroups}{path}")
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").write_text(f"{pid}\n")
        begin(self.root / "proc", 500, "app", pid)
        with (self.root / "proc" / str(pid) / "status").open("a") as status:
            status.write(f"NSpid:\t{pid}\t1\n")
        (self.root / "proc" / str(pid) / "cgroup").write_text(f"0::{path}\n")
        return Home(pod=directory.parent.stat().st_ino, cgroup=directory.stat().st_ino)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def kernel():
    return Tables()


@pytest.fixture
def clock():
    return Clock()


class Side:
    """A cluster side whose loop is the test."""

    def __init__(self, cluster, programs, told):
        self.cluster = cluster
        self.programs = programs
        self.told = told
        self.handlers = {}

    def begin(self):
        self.handlers = self.cluster.begin(self.programs, self.told.append)

    def settle(self, server):
        server.wait_for_watch()  # which follows a list
        assert self.cluster.settled() is True

    def until(self, holds):
        end = time.monotonic() + SECONDS
        while not holds():
            assert select.select([self.cluster.fileno()], [], [], max(0.0, end - time.monotonic()))[0]
            self.cluster.handle()


@pytest.fixture
def side(machine, server, tmp_path, kernel, clock):
    """Return a function that prepares a cluster side, with flags of the configuration."""
    made = []

    def side(**flags):
        kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig")
        config = load({"kubeconfig": str(kubeconfig), **flags}, {}, NODE)
        cluster = Cluster(config, "agent-1", root=machine.root, monotonic=clock)
        told: list[bytes] = []
        protected = Protected(
            kernel,
            config,
            Layer.LSM,
            announce=told.append,
            home_of=cluster.pods_on.home_of,
            pods=cluster.pods_on.rules(),
            proc=machine.root / "proc",
        )
        protected.rules.begin()
        plan = Plan(layer=Layer.LSM, required=(), optional=(), coverage=(), weaker={})
        made.append(Side(cluster, Armed(kernel=kernel, protected=protected, plan=plan), told))
        return made[-1]

    yield side
    server.release()
    for each in made:
        each.cluster.events.close()
        each.cluster.close()
        server.drop_connections()
        if each.cluster._watch._thread.ident is not None:
            each.cluster._watch._thread.join(SECONDS)
        each.cluster._connection.close()


##### The node


@pytest.mark.parametrize("mountinfo", ["", V2.replace(" / ", f" /kubepods/pod{'a' * 32}/{APP} ", 1)])
def test_a_node_whose_cgroups_cannot_be_seen_is_refused(machine, side, mountinfo):
    machine.mounts(mountinfo)

    with pytest.raises(NodeError, match=r"mount the node's /sys/fs/cgroup$"):
        side()


def test_an_agent_that_sees_its_own_container_alone_is_refused(side, monkeypatch):
    monkeypatch.setattr("agent.cluster._FIRST_PID_NAMESPACE", 0xEFFFFFFC)

    with pytest.raises(NodeError, match=r"set hostPID: true"):
        side()


@pytest.mark.parametrize(
    ("mountinfo", "version", "defines", "number"),
    [(V2, "v2", {}, 0), (V1, "v1", {"CT_PODS_ON_MEMORY": 1}, 7)],
    ids=["v2", "v1"],
)
def test_the_programs_look_where_the_nodes_pods_are(machine, side, mountinfo, version, defines, number):
    machine.mounts(mountinfo)

    made = side().cluster

    assert made.as_dict()["cgroups"] == version
    assert made.pods_on.defines() == defines
    assert made.pods_on.rules().hierarchy == number


def test_the_home_of_what_runs_is_found(machine, side):
    home = machine.run("a" * 32)

    assert side().cluster.pods_on.home_of(PID) == home


##### Before it begins


def test_before_it_begins_there_is_nothing_to_follow(side):
    made = side().cluster

    made.handle()
    made.every_second()
    made.change(load({"pod_events": False}, {}, NODE))

    counts = made.counts()
    assert (counts.connected, counts.pods, counts.pending) == (False, {}, 0)
    assert set(counts.errors.values()) == {0}
    assert made.as_dict() | {"error": None} == made.as_dict()
    assert made.as_dict()["pod_events"] == "off"


##### While it runs


def test_the_pods_that_run_are_protected_before_it_is_settled(server, machine, side, kernel):
    stored = server.put_pod(pod(labels=YES, containers={"app": APP}))
    uid = stored["metadata"]["uid"]
    home = machine.run(uid)
    made = side()
    assert made.cluster.settled() is False

    made.begin()
    made.settle(server)

    assert kernel.members().keys() == {PID}
    assert [abi.TreeRecord.from_buffer_copy(record).header.kind for record in made.told] == [
        abi.Kind.TREE_BEGINS
    ]
    assert made.cluster.attribute(home.cgroup, PID) == {
        "where": "pod",
        "container": "app",
        "container_id": APP,
        "pod": "web",
        "pod_uid": uid,
        "namespace": "default",
    }
    assert made.cluster.degraded() == ""


def test_what_the_kernel_tells_goes_to_those_who_follow_pods(side):
    made = side()
    made.begin()

    assert made.handlers.keys() == {abi.Kind.CGROUP, abi.Kind.TREE_BEGINS, abi.Kind.TREE_ENDS}


def test_what_changes_is_followed(server, machine, side, kernel):
    made = side()
    made.begin()
    made.settle(server)
    stored = server.put_pod(pod(labels=YES, containers={"app": APP}))
    machine.run(stored["metadata"]["uid"])
    for _ in range(10):
        made.cluster.every_second()

    made.until(kernel.members)
    server.put_pod(pod(labels={"cloudtaser.io/inject": "false"}, containers={"app": APP}))
    made.until(lambda: not kernel.members())

    assert made.cluster.counts().pods == {"yes": 0, "no": 1, "unsaid": 0}


def test_a_new_configuration_holds_for_events_and_pods(server, machine, side, kernel):
    stored = server.put_pod(pod(labels=YES))
    home = machine.run(stored["metadata"]["uid"])
    made = side()
    made.begin()
    made.settle(server)
    assert made.cluster.events.enabled

    made.cluster.change(load({"mode": "detect", "pod_events": False}, {}, NODE))

    told = abi.Pod.from_buffer_copy(kernel.tables["cloudtaser_pods"].content[home.pod.to_bytes(8, "little")])
    assert told.action[BY_ID["proc-mem"].number] == Action.DETECT
    assert not made.cluster.events.enabled


def test_events_may_be_off_from_the_start(side):
    made = side(pod_events=False)
    made.begin()

    assert made.cluster.as_dict()["pod_events"] == "off"


##### An API server that is away


def test_an_api_server_that_is_away_is_waited_for_but_not_for_ever(server, side, clock):
    server.refuse()
    made = side()
    made.begin()
    assert made.cluster.settled() is False

    clock.now += 9.9
    assert made.cluster.settled() is False
    clock.now += 0.1
    assert made.cluster.settled() is True


def test_what_is_missing_is_said(side):
    made = side().cluster
    assert made.degraded() == (
        "the API server does not tell of pods since it started; what is known stays in force"
    )

    made._watch.health = WatchHealth(error="it is tired", restarts=3, mistakes=2)

    assert made.degraded() == (
        "the API server does not tell of pods since it started: it is tired; what is known stays in force"
    )
    assert made.as_dict()["error"] == "it is tired"
    assert made.counts().errors == {"watch": 3, "event": 0, "node": 0, "pod": 2}


def test_an_api_server_that_goes_away_later_leaves_everything_as_it_is(server, machine, side, kernel):
    stored = server.put_pod(pod(labels=YES, containers={"app": APP}))
    machine.run(stored["metadata"]["uid"])
    made = side()
    made.begin()
    made.settle(server)
    assert made.cluster.degraded() == ""

    made.cluster._watch.close()  # so that only the test says how it is
    made.cluster._watch.health = WatchHealth(synced=True, error="it is tired")

    assert made.cluster.degraded() == (
        "the API server does not tell of pods now: it is tired; what is known stays in force"
    )
    assert made.cluster.settled() is True
    made.cluster.every_second()
    assert kernel.members().keys() == {PID}


##### What is counted and shown


def test_mistakes_and_what_nobody_knows_are_counted(server, machine, side):
    server.put_pod(pod(annotations={"cloudtaser.io/inject": "maybe", "cloudtaser.io/ebpf-mode": "stirct"}))
    made = side()
    made.begin()
    made.settle(server)
    shutil.rmtree(machine.root / "sys")

    assert made.cluster.attribute(12345, PID)["where"] == "unknown"

    counts = made.cluster.counts()
    assert counts.connected
    assert counts.errors == {"watch": 0, "event": 0, "node": 0, "pod": 2}
    assert (counts.pods, counts.pending, counts.unattributed) == ({"yes": 0, "no": 0, "unsaid": 1}, 0, 1)
    told = made.cluster.as_dict()
    assert told == {
        "connected": True,
        "synced": True,
        "error": None,
        "pods": {"yes": 0, "no": 0, "unsaid": 1},
        "pending_trees": 0,
        "unattributed": 1,
        "errors": {"watch": 0, "event": 0, "node": 0, "pod": 2},
        "node_signals": "waiting: the agent is not ready",
        "pod_events": "on",
        "cgroups": "v2",
    }
    json.dumps(told)


##### The node's own signals


def test_a_node_is_signed_when_it_is_ready_and_no_more_when_the_agent_stops(server, side):
    made = side().cluster
    assert server.nodes[NODE]["metadata"].get("labels") is None

    made.ready("lsm", "9 of 9 vectors held")
    server.wait_until(lambda: LAYER_LABEL in (server.nodes[NODE]["metadata"].get("labels") or {}))

    metadata = server.nodes[NODE]["metadata"]
    assert (metadata["labels"][LAYER_LABEL], metadata["annotations"][AGENT_ANNOTATION]) == ("lsm", "agent-1")
    made.close()
    assert LAYER_LABEL not in server.nodes[NODE]["metadata"].get("labels", {})


def test_a_node_that_is_not_to_be_signed_is_let_be(server, side):
    made = side(node_signals=False).cluster

    made.ready("lsm", "9 of 9 vectors held")

    assert made.as_dict()["node_signals"] == "off"
    made.close()
    assert [each for each in server.requests if "nodes" in each.path] == []
