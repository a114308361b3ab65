import queue
import string
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import abi
from agent.errors import KubeError
from agent.events import Clocks as Offsets
from agent.events import as_dict, decode
from agent.kube import connect
from agent.pod_events import PodEvents, World
from agent.vectors import BY_ID, Outcome

NOT_WRITTEN = "Events on pods are not written: "


class Stored:
    """An API server's Events, as far as a client of two calls can tell; `answers` are raised one by one."""

    def __init__(self):
        self.events = {}
        self.calls = []
        self.answers = []

    def create_event(self, namespace, body):
        name = body["metadata"]["name"]
        self.calls.append(("create", namespace, name))
        self._answer()
        if (namespace, name) in self.events:
            raise refusal(409)
        self.events[namespace, name] = body

    def patch_event(self, namespace, name, body):
        self.calls.append(("patch", namespace, name))
        self._answer()
        if (namespace, name) not in self.events:
            raise refusal(404)
        stored = self.events[namespace, name]
        stored["involvedObject"] |= body.pop("involvedObject", {})
        self.events[namespace, name] = stored | body

    def _answer(self):
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer

    def only(self):
        """Return the only Event there is."""
        (event,) = self.events.values()
        return event

    def verbs(self):
        return [verb for verb, _, _ in self.calls]


class Clocks:
    """Clocks that tests move."""

    def __init__(self):
        self.monotonic = 1000.0
        self.time_ns = 0x17C000000000000

    def world(self, **others):
        return World(monotonic=lambda: self.monotonic, time_ns=self._time_ns, random=lambda: 1.0, **others)

    def _time_ns(self):
        self.time_ns += 1
        return self.time_ns


def refusal(status, text="the API server says no"):
    return KubeError(text, status=status)


@pytest.fixture
def client():
    return Stored()


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def sink(client, clocks):
    """A sink without its thread: tests make its steps."""
    return PodEvents(client, node="node-1", instance="cloudtaser-ebpf-x7k2p", world=clocks.world())


def settle(sink):
    """Let the sink do what it can do now; return how many seconds it would wait then."""
    while (seconds := sink._step()) == 0:
        pass
    return seconds


POD = {"where": "pod", "container": "app", "pod": "web-1", "pod_uid": "uid-web", "namespace": "shop"}
DEBUG = {"where": "pod", "container": "shell", "pod": "debug", "pod_uid": "uid-debug", "namespace": "default"}
NODE = {"where": "node", "container": None, "pod": None, "pod_uid": None, "namespace": None}
UNKNOWN = NODE | {"where": "unknown"}


def attempt(*, offender=NODE, target=POD, second=0, comm="gdb", **others):
    return {
        "type": "attempt",
        "time": f"2026-11-24T15:20:{second:02}.123456789Z",
        "vector": "process-vm-read",
        "outcome": "killed",
        "offender": {"pid": 4711, "uid": 0, "comm": comm} | offender,
        "target": {"pid": 815, "comm": "app"} | target,
    } | others


def pod(number, namespace="shop"):
    return POD | {"pod": f"web-{number}", "pod_uid": f"uid-{number}", "namespace": namespace}


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def test_a_killed_attempt_is_an_event_on_the_targets_pod(sink, client):
    sink.emit(attempt())

    assert settle(sink) is None
    assert client.only() == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "shop", "name": "web-1.17c000000000001"},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": "shop",
            "name": "web-1",
            "uid": "uid-web",
            "fieldPath": "spec.containers{app}",
        },
        "type": "Warning",
        "reason": "CloudTaserBlocked",
        "action": "Blocked",
        "message": '"gdb" (pid 4711, uid 0, on the node itself) tried process-vm-read on container app'
        " and was killed.",
        "source": {"component": "cloudtaser-ebpf", "host": "node-1"},
        "reportingComponent": "cloudtaser.io/ebpf",
        "reportingInstance": "cloudtaser-ebpf-x7k2p",
        "firstTimestamp": "2026-11-24T15:20:00Z",
        "lastTimestamp": "2026-11-24T15:20:00Z",
        "count": 1,
    }
    assert (sink.dropped, sink.errors) == (0, 0)


def test_the_offenders_pod_gets_an_event_of_its_own(sink, client):
    sink.emit(attempt(offender=DEBUG))
    settle(sink)

    by_pod = {event["involvedObject"]["name"]: event for event in client.events.values()}
    assert [call[1] for call in client.calls] == ["shop", "default"]
    assert by_pod["debug"]["involvedObject"]["uid"] == "uid-debug"
    assert by_pod["debug"]["involvedObject"]["fieldPath"] == "spec.containers{shell}"
    assert by_pod["web-1"]["message"] == (
        '"gdb" (pid 4711, uid 0, pod default/debug, container shell) tried process-vm-read on container app'
        " and was killed."
    )
    assert by_pod["debug"]["message"] == (
        '"gdb" (pid 4711, uid 0, container shell) of this pod tried process-vm-read on a protected process'
        " and was killed."
    )


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (attempt(outcome="denied"), "tried process-vm-read on container app and was denied."),
        (attempt(offender=UNKNOWN), "uid 0, from an unknown place) tried"),
        (attempt(offender={}), "uid 0, from an unknown place) tried"),
        (attempt(offender=UNKNOWN | {"where": "pod"}), "uid 0, from an unknown pod) tried"),
        (attempt(offender=DEBUG | {"container": None}), "uid 0, pod default/debug) tried"),
        (attempt(target=POD | {"container": None}), "tried process-vm-read on this pod and was killed."),
        (attempt(offender={"comm": None, "pid": None}), "a process (pid unknown, uid 0, from"),
    ],
)
def test_the_target_is_told_who_it_was(sink, client, event, expected):
    sink.emit(event)
    settle(sink)

    told = [each for each in client.events.values() if each["involvedObject"]["name"] == "web-1"]
    assert expected in told[0]["message"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (POD, "a protected process"),
        (POD | {"namespace": "default"}, "pod web-1, container app"),
        (POD | {"namespace": "default", "container": None}, "pod web-1"),
        (NODE, "a protected process"),
    ],
)
def test_the_offender_learns_no_names_of_other_namespaces(sink, client, target, expected):
    sink.emit(attempt(offender=DEBUG, target=target))
    settle(sink)

    told = [each for each in client.events.values() if each["involvedObject"]["name"] == "debug"]
    assert told[0]["message"] == (
        f'"gdb" (pid 4711, uid 0, container shell) of this pod tried process-vm-read on {expected}'
        " and was killed."
    )


def test_an_attempt_within_a_pod_is_one_event(sink, client):
    sink.emit(attempt(offender=POD | {"container": "shell"}))
    settle(sink)

    assert client.only()["message"] == (
        '"gdb" (pid 4711, uid 0, of this pod, container shell) tried process-vm-read on container app'
        " and was killed."
    )


@given(comm=st.text(max_size=100), name=st.text(string.ascii_lowercase, min_size=1, max_size=253))
def test_whatever_a_process_is_called_the_message_is_short_and_plain(comm, name):
    client = Stored()
    sink = PodEvents(client, node="node-1", instance="", world=Clocks().world())
    sink.emit(
        attempt(
            comm=comm,
            offender=DEBUG | {"namespace": name[:63], "pod": name, "container": name[:63]},
            target=POD | {"namespace": name[:63], "container": name[:63]},
        )
    )
    settle(sink)

    for event in client.events.values():
        assert len(event["message"].encode()) < 1024
        assert event["message"].isascii()
        assert event["message"].isprintable()
        assert event["message"].endswith("and was killed.")
        assert event["message"].count('"') == (2 if comm else 0)


@pytest.mark.parametrize(
    "event",
    [
        attempt(outcome="detected"),
        attempt(type="tree-begins", vector=None, outcome=None, offender={}),
        attempt(target=NODE),
        attempt(target={"comm": "app"}),
        attempt(target=POD | {"pod": None, "namespace": None}),
        attempt(target=POD | {"pod_uid": None}),
    ],
)
def test_what_was_not_blocked_in_a_pod_is_not_told(sink, client, event):
    sink.emit(event)

    assert settle(sink) is None
    assert (client.calls, sink.dropped) == ([], 0)


def test_what_the_kernel_reports_is_understood(sink, client):
    record = abi.Attempt()
    record.header.kind, record.header.size = abi.Kind.ATTEMPT, len(bytes(record))
    record.vector, record.outcome = BY_ID["proc-environ"].number, Outcome.DENIED
    record.header.cgroup_id, record.target_cgroup = 7, 8
    record.offender.tgid, record.offender.comm = 4711, b"ps\xff"
    record.tree.pid = 815
    places: dict[int, dict[str, str | None]] = {
        7: {**NODE, "container_id": None},
        8: {**POD, "container_id": "0" * 64},
    }
    sink.emit(
        as_dict(
            decode(bytes(record)),
            node="node-1",
            clocks=Offsets(monotonic_offset_ns=1_000_000_000, boottime_offset_ns=0),
            attribute=lambda cgroup_id, _: places[cgroup_id],
        )
    )
    settle(sink)

    event = client.only()
    assert event["firstTimestamp"] == "1970-01-01T00:00:01Z"
    assert event["message"] == (
        '"ps?" (pid 4711, uid 0, on the node itself) tried proc-environ on container app and was denied.'
    )


def test_it_can_be_switched_off_while_it_runs(sink, client):
    sink.enabled = False
    sink.emit(attempt())
    settle(sink)
    sink.enabled = True
    sink.emit(attempt())
    settle(sink)

    assert client.only()["count"] == 1


def test_a_flood_is_a_count(sink, client, clocks):
    sink.emit(attempt(second=1))
    settle(sink)
    for number in range(1009):
        sink.emit(attempt(second=2, comm=f"gdb{number}"))

    assert settle(sink) == 10
    clocks.monotonic += 9.5
    assert settle(sink) == 0.5
    clocks.monotonic += 0.5
    assert settle(sink) is None
    event = client.only()
    assert client.verbs() == ["create", "patch"]
    assert (event["count"], event["firstTimestamp"], event["lastTimestamp"]) == (
        1010,
        "2026-11-24T15:20:01Z",
        "2026-11-24T15:20:02Z",
    )
    assert event["message"].startswith('"gdb1008"')


def test_a_patch_says_what_is_new_and_nothing_else(sink, client, clocks):
    patches = []
    client.patch_event = lambda namespace, name, body: patches.append((namespace, name, set(body)))
    sink.emit(attempt())
    settle(sink)
    sink.emit(attempt())
    clocks.monotonic += 10
    settle(sink)

    assert patches == [("shop", "web-1.17c000000000001", {"count", "lastTimestamp", "message"})]


def test_each_vector_and_outcome_has_an_event(sink, client):
    sink.emit(attempt())
    sink.emit(attempt(vector="proc-mem"))
    sink.emit(attempt(outcome="denied"))
    sink.emit(attempt(target=pod(2)))
    sink.emit(attempt(offender=POD, target=DEBUG))
    settle(sink)

    assert client.verbs() == ["create"] * 6


def test_an_event_points_at_the_container_of_the_latest_attempt(sink, client, clocks):
    paths = []
    for container in ("app", "sidecar", None, None):
        sink.emit(attempt(target=POD | {"container": container}))
        clocks.monotonic += 10
        settle(sink)
        paths.append(client.only()["involvedObject"].get("fieldPath"))

    assert paths == ["spec.containers{app}", "spec.containers{sidecar}", None, None]


def test_an_event_need_not_point_at_a_container(sink, client):
    sink.emit(attempt(target=POD | {"container": None}))
    settle(sink)

    assert "fieldPath" not in client.only()["involvedObject"]


def test_a_count_stays_what_the_api_can_hold(sink, client):
    sink.emit(attempt())
    (tally,) = sink._tallies.values()
    tally.seen = 2**31
    settle(sink)

    assert client.only()["count"] == 2**31 - 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web-1", "web-1.17c000000000001"),
        ("a" * 253, "a" * 237 + ".17c000000000001"),
        ("a" * 236 + "-" + "b" * 16, "a" * 236 + ".17c000000000001"),
    ],
)
def test_the_name_of_an_event_is_a_name(sink, client, name, expected):
    sink.emit(attempt(target=POD | {"pod": name}))
    settle(sink)

    assert client.only()["metadata"]["name"] == expected


def test_writes_are_a_burst_and_then_one_a_second(sink, client, clocks):
    for number in range(31):
        sink.emit(attempt(target=pod(number)))

    assert settle(sink) == 1
    assert len(client.events) == 25
    clocks.monotonic += 0.25
    assert settle(sink) == 0.75
    for _ in range(3):
        clocks.monotonic += 1
        settle(sink)
    assert len(client.events) == 28
    clocks.monotonic += 3600
    assert settle(sink) is None
    assert len(client.events) == 31


def test_what_is_new_goes_before_more_of_what_is_known(sink, client, clocks):
    for number in range(25):
        sink.emit(attempt(target=pod(number)))
    settle(sink)
    for number in range(25):
        sink.emit(attempt(target=pod(number)))
    clocks.monotonic += 20
    settle(sink)
    sink.emit(attempt(target=pod("new")))
    clocks.monotonic += 1
    settle(sink)

    assert client.calls[-1][:2] == ("create", "shop")
    assert client.calls[-1][2].startswith("web-new.")


def test_an_event_that_always_fails_does_not_hold_up_the_others(sink, client, clocks):
    sink.emit(attempt(target=pod("bad")))
    client.answers = [refusal(500)]
    settle(sink)
    sink.emit(attempt(target=pod("good")))
    clocks.monotonic += 1
    client.answers = [None, refusal(500)]
    settle(sink)

    assert [call[2].split(".")[0] for call in client.calls] == ["web-bad", "web-good", "web-bad"]


def pods_kept(sink):
    return {key.pod_uid.removeprefix("uid-") for key in sink._tallies}


def test_what_is_told_is_forgotten_first(sink, client):
    client.answers = [refusal(403)]
    sink.emit(attempt(target=pod("waiting", namespace="forbidden")))
    settle(sink)
    sink.emit(attempt(target=pod("told")))
    settle(sink)
    for number in range(511):
        sink.emit(attempt(target=pod(number)))

    assert pods_kept(sink) == {"waiting", *map(str, range(511))}
    assert sink.dropped == 0


def test_where_all_are_waiting_the_one_that_was_not_used_for_longest_is_dropped(sink):
    for number in range(512):
        sink.emit(attempt(target=pod(number)))
    sink.emit(attempt(target=pod(0)))
    sink.emit(attempt(target=pod("last")))

    assert pods_kept(sink) == {"last", "0", *map(str, range(2, 512))}
    assert sink.dropped == 1


def test_an_event_that_has_expired_is_made_anew_with_the_whole_count(sink, client, clocks):
    sink.emit(attempt(second=1))
    settle(sink)
    client.events.clear()
    sink.emit(attempt(second=2))
    clocks.monotonic += 7200
    settle(sink)

    event = client.only()
    assert client.verbs() == ["create", "patch", "create"]
    assert (event["count"], event["firstTimestamp"]) == (2, "2026-11-24T15:20:01Z")
    assert event["metadata"]["name"] == "web-1.17c000000000002"
    assert sink.errors == 0


@pytest.mark.parametrize(
    "gone",
    [
        refusal(404),
        refusal(
            403, "forbidden: unable to create new content in namespace shop because it is being terminated"
        ),
    ],
)
def test_a_namespace_that_goes_away_is_let_go(sink, client, clocks, caplog, gone):
    client.answers = [gone]
    sink.emit(attempt())
    sink.emit(attempt())

    assert settle(sink) is None
    assert (sink.dropped, sink.errors, messages(caplog)) == (2, 1, [])

    sink.emit(attempt())
    assert settle(sink) == 300
    clocks.monotonic += 300
    settle(sink)
    assert client.only()["count"] == 3


def test_without_permission_it_is_told_once_and_tried_now_and_then(sink, client, clocks, caplog):
    forbidden = "the API server refuses to create events (403): apply the ClusterRole of daemonset.yaml"
    client.answers = [refusal(403, forbidden), None, refusal(403, forbidden)]
    sink.emit(attempt())
    sink.emit(attempt(vector="proc-mem"))
    sink.emit(attempt(offender=DEBUG, target=NODE))

    assert settle(sink) == 300
    assert [call[1] for call in client.calls] == ["shop", "default"]  # others are not held up
    clocks.monotonic += 300
    assert settle(sink) == 300
    assert [call[1] for call in client.calls] == ["shop", "default", "shop"]
    clocks.monotonic += 300
    assert settle(sink) is None
    assert (len(client.events), sink.dropped, sink.errors) == (3, 0, 2)
    assert messages(caplog) == [f"{NOT_WRITTEN}{forbidden}, or set pod-events: false"]


def test_a_refusal_is_remembered_only_while_it_matters(sink, client, clocks):
    for number in range(20):
        client.answers = [refusal(403)]
        sink.emit(attempt(target=pod(number, namespace=f"shop-{number}")))
        settle(sink)
        clocks.monotonic += 200

    assert len(sink._refused_until) <= 2


def test_it_is_told_again_after_an_hour(sink, client, clocks, caplog):
    for _ in range(13):
        client.answers = [refusal(403)]
        sink.emit(attempt())
        settle(sink)
        clocks.monotonic += 300

    assert len(messages(caplog)) == 2


@pytest.mark.parametrize("status", [None, 401, 408, 409, 429, 500, 503])
def test_without_an_api_server_the_counts_are_kept(sink, client, clocks, caplog, status):
    sink.emit(attempt())
    settle(sink)
    clocks.monotonic += 10
    for _ in range(8):
        sink.emit(attempt())
    client.answers = [refusal(status)] * 8
    waits = []
    for _ in range(8):
        waits.append(settle(sink))
        clocks.monotonic += waits[-1]

    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert settle(sink) is None
    assert (client.only()["count"], sink.dropped, sink.errors) == (9, 0, 8)
    assert messages(caplog) == [f"{NOT_WRITTEN}the API server says no (kept, and tried again)"]

    sink.emit(attempt())
    clocks.monotonic += 10
    client.answers = [refusal(status)]
    assert settle(sink) == 1


def test_a_lost_answer_makes_no_second_event(sink, client, clocks):
    client.answers = [refusal(None)]
    sink.emit(attempt())
    settle(sink)
    client.events["shop", client.calls[0][2]] = {"involvedObject": {}, "count": 1}  # it had arrived
    sink.emit(attempt())
    clocks.monotonic += 1
    settle(sink)

    assert client.verbs() == ["create", "create", "patch"]
    assert client.only()["count"] == 2
    assert sink.errors == 1


def test_what_the_api_server_does_not_understand_is_dropped(sink, client, caplog):
    client.answers = [refusal(422, "Event is invalid")]
    sink.emit(attempt())

    assert settle(sink) is None
    assert (sink.dropped, sink.errors) == (1, 1)
    assert messages(caplog) == [f"{NOT_WRITTEN}Event is invalid"]


def test_a_mistake_of_ours_is_no_end(sink, client, caplog):
    client.answers = [RuntimeError("a mistake")]
    sink.emit(attempt())
    sink.emit(attempt(target=pod(2)))

    assert settle(sink) is None
    assert (sink.dropped, sink.errors, len(client.events)) == (1, 1, 1)
    assert messages(caplog) == ["an Event on a pod could not be written"]


def test_the_end_does_not_wait_for_the_next_patch(client, clocks):
    sink = PodEvents(client, node="node-1", instance="", world=clocks.world())
    sink.emit(attempt())
    settle(sink)
    for _ in range(7):
        sink.emit(attempt())
    sink.start()
    sink.close()

    assert client.only()["count"] == 8
    assert sink.dropped == 0
    assert not sink._thread.is_alive()


def test_at_the_end_nothing_is_tried_twice(client, clocks):
    sink = PodEvents(client, node="node-1", instance="", world=clocks.world())
    client.answers = [refusal(None), refusal(403), refusal(503)]
    for number in range(5):
        sink.emit(attempt(target=pod(number)))
    with sink._guard:  # close comes before the first step
        sink.start()
        sink._closing = True
    sink.close()

    assert (len(client.calls), len(client.events), sink.dropped) == (5, 2, 3)


def test_after_the_end_everything_is_dropped(client, clocks):
    sink = PodEvents(client, node="node-1", instance="", world=clocks.world())
    sink.emit(attempt())
    sink.close()
    sink.emit(attempt(offender=DEBUG))

    assert (client.calls, sink.dropped) == ([], 3)


class Hanging(Stored):
    """Takes a call, and answers when the test says so."""

    def __init__(self):
        super().__init__()
        self.asked: queue.Queue[str] = queue.Queue()
        self.answer = threading.Event()

    def create_event(self, namespace, body):
        self.asked.put(namespace)
        assert self.answer.wait(60)
        super().create_event(namespace, body)


def test_neither_emit_nor_close_waits_for_the_api_server():
    client = Hanging()

    def wait(event, seconds):
        return event.wait(0.01 if seconds == 1 else seconds)  # the patience at the end

    sink = PodEvents(client, node="node-1", instance="", world=World(wait=wait))
    sink.start()
    sink.emit(attempt())
    client.asked.get(timeout=60)
    sink.emit(attempt())
    sink.emit(attempt(target=pod(2)))
    sink.close()

    assert sink.dropped == 3
    client.answer.set()
    sink._thread.join(60)
    assert (len(client.calls), sink.dropped) == (1, 3)


def test_the_thread_wakes_for_news_and_when_a_patch_is_due(client, clocks):
    waits: queue.Queue[float | None] = queue.Queue()
    go_on: queue.Queue[float] = queue.Queue()

    def wait(event, seconds):
        if threading.current_thread() is threading.main_thread():
            return event.wait(60)
        waits.put(seconds)
        clocks.monotonic += go_on.get(timeout=60)
        return event.is_set()

    sink = PodEvents(client, node="node-1", instance="", world=clocks.world(wait=wait))
    sink.start()
    assert waits.get(timeout=60) is None
    sink.emit(attempt())
    go_on.put(0)
    assert waits.get(timeout=60) is None
    assert client.only()["count"] == 1
    sink.emit(attempt())
    sink.emit(attempt())
    go_on.put(0)
    assert waits.get(timeout=60) == 10
    go_on.put(10)
    assert waits.get(timeout=60) is None
    assert client.only()["count"] == 3
    go_on.put(0)
    sink.close()

    assert not sink._thread.is_alive()


@pytest.fixture
def over_http(server, clocks, tmp_path):
    """A sink without its thread that writes to a server."""
    client = connect(server.write_kubeconfig(tmp_path / "kubeconfig"))
    yield PodEvents(client, node="node-1", instance="agent-1", world=clocks.world())
    client.close()


def test_over_http_a_flood_is_one_event_and_few_requests(server, over_http, clocks):
    sink = over_http
    sink.emit(attempt(offender=DEBUG))
    sink.start()
    server.wait_until(lambda: len(server.events) == 2)
    for _ in range(1009):
        sink.emit(attempt(offender=DEBUG, second=9))
    sink.close()

    assert sorted((namespace, event["count"]) for (namespace, _), event in server.events.items()) == [
        ("default", 1010),
        ("shop", 1010),
    ]
    assert {event["lastTimestamp"] for event in server.events.values()} == {"2026-11-24T15:20:09Z"}
    assert len(server.requests) == 4
    assert (sink.dropped, sink.errors) == (0, 0)


def test_over_http_an_api_server_may_be_away(server, over_http, clocks):
    sink = over_http
    server.refuse()
    for _ in range(7):
        sink.emit(attempt())

    assert settle(sink) == 1
    server.listen()
    server.fail(503)
    clocks.monotonic += 1
    assert settle(sink) == 2
    clocks.monotonic += 2
    assert settle(sink) is None
    assert [event["count"] for event in server.events.values()] == [7]
    assert (sink.dropped, sink.errors) == (0, 2)


def test_over_http_an_event_may_expire_and_its_namespace_go(server, over_http, clocks, caplog):
    sink = over_http
    sink.emit(attempt())
    settle(sink)
    server.events.clear()
    sink.emit(attempt())
    clocks.monotonic += 10
    settle(sink)
    assert [event["count"] for event in server.events.values()] == [2]

    server.events.clear()
    server.fail(403, method="POST", message="shop is forbidden because it is being terminated")
    sink.emit(attempt())
    clocks.monotonic += 10
    assert settle(sink) is None
    assert (sink.dropped, messages(caplog)) == (1, [])


def test_over_http_a_missing_role_is_told(server, over_http, caplog):
    server.fail(403)
    over_http.emit(attempt())

    assert settle(over_http) == 300
    assert messages(caplog)[-1] == (
        f"{NOT_WRITTEN}the API server refuses to create an Event (403): "
        "apply the ClusterRole of daemonset.yaml, or set pod-events: false"
    )


def test_over_http_a_lost_answer_makes_no_second_event(server, over_http, clocks):
    sink = over_http
    server.hold()
    sink.emit(attempt())
    with ThreadPoolExecutor(1) as pool:
        settled = pool.submit(settle, sink)
        server.wait_for_requests(1)
        server.drop_connections()
        assert settled.result(timeout=60) == 1
    server.release()
    server.wait_until(lambda: len(server.events) == 1)
    sink.emit(attempt())
    clocks.monotonic += 1

    assert settle(sink) is None
    assert [event["count"] for event in server.events.values()] == [2]
