import copy
import queue
import threading

import pytest

from agent.errors import KubeError
from agent.kube import connect
from agent.node_signals import NodeSignals
from tests.api_server import ApiError, json_patch, node

LABEL = "cloudtaser.io/ebpf-layer"
SELFTEST = "cloudtaser.io/ebpf-selftest"
AGENT = "cloudtaser.io/ebpf-agent"
TAINT = {"key": "cloudtaser.io/agent-not-ready", "effect": "NoSchedule"}
OTHER_TAINTS = [
    {"key": "dedicated", "value": "db", "effect": "NoSchedule"},
    {"key": "cloudtaser.io/agent-not-ready", "effect": "NoExecute", "timeAdded": "2026-11-24T15:20:00Z"},
    {"key": "gpu", "effect": "NoSchedule"},
]
NOT_WRITTEN = "label, annotations and taint of node node-1 are not written: "
SIGNED = {SELFTEST: "9 of 9 vectors held", AGENT: "agent-1"}


class Node:
    """An API server with one node that understands JSON patches; `answers` are raised one by one."""

    def __init__(self, **node):
        self.node = {"metadata": {"name": "node-1", "resourceVersion": "7"}, "spec": {}} | node
        self.patches = []
        self.calls = 0
        self.answers = []
        self.between = []  # what others do between our reading and our writing

    @property
    def metadata(self):
        return self.node["metadata"]

    def get_node(self, name):
        self.calls += 1
        assert name == "node-1"
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        return copy.deepcopy(self.node)

    def patch_node(self, name, body):
        assert name == "node-1"
        if self.between:
            self.between.pop(0)()
        self.patches.append(body)
        try:
            self.node = json_patch(self.node, body)
        except ApiError as error:
            raise refusal(error.status, "the patch does not apply") from error
        self.touch()

    def touch(self):
        self.metadata["resourceVersion"] = str(int(self.metadata["resourceVersion"]) + 1)


def refusal(status, text="the API server says no"):
    return KubeError(text, status=status)


class Waits:
    """How long the thread would wait; the test lets it go on. The test's own waiting for its end is real."""

    def __init__(self):
        self._seconds: queue.Queue[float | None] = queue.Queue()
        self._go_on: queue.Queue[None] = queue.Queue()

    def __call__(self, event, seconds):
        if threading.current_thread() is threading.main_thread():
            self._go_on.put(None)
            return event.wait(60)
        self._seconds.put(seconds)
        self._go_on.get(timeout=60)
        return event.is_set()

    def next(self):
        return self._seconds.get(timeout=60)

    def go_on(self):
        self._go_on.put(None)
        return self.next()


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture
def signals(waits):
    made = []

    def signals(client, instance="agent-1", random=lambda: 1.0):
        made.append(NodeSignals(client, "node-1", instance, random=random, wait=waits))
        return made[-1]

    yield signals
    for each in made:
        each.close()


def ready(signals, waits):
    signals.ready("lsm", "9 of 9 vectors held")
    return waits.next()


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def test_a_bare_node_gets_label_and_annotations(signals, waits):
    client = Node()
    signal = signals(client)
    assert signal.status == "waiting: the agent is not ready"

    assert ready(signal, waits) is None
    assert client.metadata["labels"] == {LABEL: "lsm"}
    assert client.metadata["annotations"] == SIGNED
    assert client.node["spec"] == {}
    assert (signal.status, signal.errors) == ("written", 0)


def test_what_others_have_written_stays(signals, waits):
    client = Node(
        metadata={
            "resourceVersion": "7",
            "labels": {"zone": "a", LABEL: "tracepoint"},
            "annotations": {"note": "b", AGENT: "agent-0"},
        },
        spec={"podCIDR": "10.0.0.0/24", "taints": [*OTHER_TAINTS[:2], TAINT, *OTHER_TAINTS[2:]]},
    )
    ready(signals(client), waits)

    assert client.metadata["labels"] == {"zone": "a", LABEL: "lsm"}
    assert client.metadata["annotations"] == {"note": "b"} | SIGNED
    assert client.node["spec"] == {"podCIDR": "10.0.0.0/24", "taints": OTHER_TAINTS}


def test_the_patch_is_all_or_nothing_and_touches_only_what_is_ours(signals, waits):
    client = Node(
        metadata={"resourceVersion": "7", "labels": {"zone": "a"}, "annotations": {"note": "b"}},
        spec={"taints": [TAINT]},
    )
    ready(signals(client), waits)

    assert client.patches == [
        [
            {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
            {"op": "add", "path": "/metadata/labels/cloudtaser.io~1ebpf-layer", "value": "lsm"},
            {
                "op": "add",
                "path": "/metadata/annotations/cloudtaser.io~1ebpf-selftest",
                "value": "9 of 9 vectors held",
            },
            {"op": "add", "path": "/metadata/annotations/cloudtaser.io~1ebpf-agent", "value": "agent-1"},
            {"op": "remove", "path": "/spec/taints"},
        ]
    ]


@pytest.mark.parametrize("spec", [{}, {"taints": None}, {"taints": []}, {"taints": OTHER_TAINTS}])
def test_a_node_without_the_taint_keeps_what_it_has(signals, waits, spec):
    client = Node(spec=copy.deepcopy(spec))
    ready(signals(client), waits)

    assert client.node["spec"] == spec


def test_a_node_that_says_it_already_is_not_written(signals, waits):
    client = Node(metadata={"resourceVersion": "7", "labels": {LABEL: "lsm"}, "annotations": dict(SIGNED)})
    signal = signals(client)
    ready(signal, waits)

    assert client.patches == []
    assert signal.status == "written"


def test_what_has_changed_is_written_again(signals, waits):
    client = Node()
    signal = signals(client)
    ready(signal, waits)
    signal.ready("lsm", "8 of 9 vectors held")

    assert waits.go_on() is None
    assert client.metadata["annotations"][SELFTEST] == "8 of 9 vectors held"
    assert client.calls == 2


def test_a_taint_that_another_adds_meanwhile_is_not_lost(signals, waits, caplog):
    client = Node(spec={"taints": [TAINT]})

    def another():
        client.node["spec"]["taints"].append(OTHER_TAINTS[0])
        client.touch()

    client.between = [another]
    signal = signals(client)

    assert ready(signal, waits) == 1
    assert client.node["spec"]["taints"] == [TAINT, OTHER_TAINTS[0]]
    assert "labels" not in client.metadata
    assert waits.go_on() is None
    assert client.node["spec"]["taints"] == [OTHER_TAINTS[0]]
    assert client.metadata["labels"] == {LABEL: "lsm"}
    assert (signal.errors, messages(caplog)) == (0, [])


@pytest.mark.parametrize("status", [None, 401, 404, 429, 500])
def test_it_is_tried_until_it_succeeds(signals, waits, caplog, status):
    client = Node()
    client.answers = [refusal(status)] * 8
    signal = signals(client)

    tried = [ready(signal, waits)] + [waits.go_on() for _ in range(7)]
    assert tried == [1, 2, 4, 8, 16, 32, 60, 60]
    assert signal.status == "waiting: the API server says no"
    assert waits.go_on() is None
    assert (signal.status, signal.errors) == ("written", 8)
    assert messages(caplog) == [f"{NOT_WRITTEN}the API server says no (tried again until it succeeds)"]


def test_nodes_do_not_try_at_the_same_time(signals, waits):
    client = Node()
    client.answers = [refusal(503)] * 3
    signal = signals(client, random=lambda: 0.0)

    assert [ready(signal, waits), waits.go_on(), waits.go_on()] == [0.5, 1, 2]


def test_after_a_success_the_next_failure_begins_anew(signals, waits, caplog):
    client = Node()
    client.answers = [refusal(None), None, refusal(None)]
    signal = signals(client)
    ready(signal, waits)
    waits.go_on()
    signal.ready("lsm", "8 of 9 vectors held")

    assert waits.go_on() == 1
    assert len(messages(caplog)) == 2


def test_without_permission_it_is_told_once_and_tried_now_and_then(signals, waits, caplog):
    client = Node()
    forbidden = "the API server refuses to read the node (403): apply the ClusterRole of daemonset.yaml"
    client.answers = [refusal(403, forbidden)] * 3
    signal = signals(client)

    assert [ready(signal, waits), waits.go_on(), waits.go_on()] == [300, 300, 300]
    assert signal.status == f"waiting: {forbidden}"
    assert messages(caplog) == [f"{NOT_WRITTEN}{forbidden}, or set node-signals: false"]
    assert waits.go_on() is None
    assert signal.status == "written"


def test_a_conflict_that_does_not_end_is_told(signals, waits, caplog):
    client = Node()
    client.between = [client.touch] * 7
    signal = signals(client)

    tried = [ready(signal, waits)] + [waits.go_on() for _ in range(6)]
    assert tried == [1, 2, 4, 8, 16, 32, 60]
    assert len(messages(caplog)) == 1
    assert waits.go_on() is None


def test_a_node_that_is_none_is_told_and_tried_again(signals, waits, caplog):
    client = Node(metadata={})
    signal = signals(client)

    assert ready(signal, waits) == 1
    assert signal.status == "waiting: the node cannot be understood: KeyError('resourceVersion')"
    assert len(messages(caplog)) == 1


def test_an_agent_that_stops_withdraws_all_but_the_taints_absence(signals, waits):
    client = Node(
        metadata={"resourceVersion": "7", "labels": {"zone": "a"}, "annotations": {"note": "b"}},
        spec={"taints": [TAINT, OTHER_TAINTS[0]]},
    )
    signal = signals(client)
    ready(signal, waits)
    signal.close()

    assert client.metadata["labels"] == {"zone": "a"}
    assert client.metadata["annotations"] == {"note": "b"}
    assert client.node["spec"]["taints"] == [OTHER_TAINTS[0]]
    assert signal.status == "withdrawn"
    assert client.patches[-1][0] == {
        "op": "test",
        "path": "/metadata/annotations/cloudtaser.io~1ebpf-agent",
        "value": "agent-1",
    }


def test_what_somebody_has_removed_need_not_be_withdrawn(signals, waits):
    client = Node()
    signal = signals(client)
    ready(signal, waits)
    client.metadata["labels"] = None
    del client.metadata["annotations"][SELFTEST]
    signal.close()

    assert client.metadata["annotations"] == {}
    assert signal.status == "withdrawn"


def test_the_next_agents_signals_are_left_alone(signals, waits):
    client = Node()
    first = signals(client)
    ready(first, waits)
    theirs = Waits()
    second = NodeSignals(client, "node-1", "agent-2", random=lambda: 1.0, wait=theirs)
    second.ready("fmod_ret", "9 of 9 vectors held")
    theirs.next()
    first.close()

    assert client.metadata["labels"] == {LABEL: "fmod_ret"}
    assert client.metadata["annotations"][AGENT] == "agent-2"
    second.close()
    assert client.metadata["labels"] == {}


def test_the_next_agent_may_write_at_the_last_moment(signals, waits):
    client = Node()
    signal = signals(client)
    ready(signal, waits)
    client.between = [lambda: client.metadata["annotations"].update({AGENT: "agent-2"})]
    signal.close()

    assert client.metadata["labels"] == {LABEL: "lsm"}
    assert signal.status == "not withdrawn: the patch does not apply"


def test_an_agent_that_never_was_ready_has_nothing_to_withdraw(signals):
    client = Node()
    signals(client).close()

    assert client.calls == 0


class Hanging(Node):
    """Takes a call, and answers when the test says so."""

    def __init__(self):
        super().__init__()
        self.asked = threading.Event()
        self.answer = threading.Event()

    def get_node(self, name):
        self.asked.set()
        assert self.answer.wait(60)
        return super().get_node(name)


def test_an_end_does_not_wait_for_the_api_server():
    client = Hanging()
    signal = NodeSignals(client, "node-1", "agent-1", wait=lambda event, _: event.wait(0.01))
    signal.ready("lsm", "9 of 9 vectors held")
    assert client.asked.wait(60)
    signal.close()

    assert signal._thread.is_alive()
    client.answer.set()
    signal._thread.join(60)
    assert client.patches == []  # what was under way is not written any more


@pytest.fixture
def server(server):
    server.put_node(node(labels={"zone": "a"}, taints=[TAINT, OTHER_TAINTS[0]]))
    return server


@pytest.fixture
def client(server, tmp_path):
    client = connect(server.write_kubeconfig(tmp_path / "kubeconfig"))
    yield client
    client.close()


def test_over_http_they_come_and_go(signals, waits, server, client):
    signal = signals(client)

    assert ready(signal, waits) is None
    signed = server.nodes["node-1"]
    assert signed["metadata"]["labels"] == {"zone": "a", LABEL: "lsm"}
    assert signed["metadata"]["annotations"] == SIGNED
    assert signed["spec"]["taints"] == [OTHER_TAINTS[0]]
    signal.close()
    withdrawn = server.nodes["node-1"]
    assert withdrawn["metadata"]["labels"] == {"zone": "a"}
    assert withdrawn["metadata"]["annotations"] == {}
    assert withdrawn["spec"]["taints"] == [OTHER_TAINTS[0]]
    assert signal.errors == 0


def test_over_http_a_change_by_others_is_not_lost(signals, waits, server, client):
    server.hold(lambda request: request.method == "PATCH")
    signal = signals(client)
    signal.ready("lsm", "9 of 9 vectors held")
    server.wait_for_requests(1, method="PATCH")
    server.put_node(node(taints=[TAINT, *OTHER_TAINTS]))
    server.release()

    assert waits.next() == 1
    assert server.nodes["node-1"]["spec"]["taints"] == [TAINT, *OTHER_TAINTS]
    assert waits.go_on() is None
    assert server.nodes["node-1"]["spec"]["taints"] == OTHER_TAINTS
    assert signal.errors == 0


def test_over_http_an_api_server_may_come_back(signals, waits, server, client, caplog):
    server.refuse()
    signal = signals(client)

    assert ready(signal, waits) == 1
    assert "cannot be reached" in signal.status
    server.listen()
    server.fail(403, method="PATCH")
    assert waits.go_on() == 300
    assert waits.go_on() is None
    assert server.nodes["node-1"]["metadata"]["labels"][LABEL] == "lsm"
    assert messages(caplog)[-1] == (
        f"{NOT_WRITTEN}the API server refuses to change the node (403): "
        "apply the ClusterRole of daemonset.yaml, or set node-signals: false"
    )
