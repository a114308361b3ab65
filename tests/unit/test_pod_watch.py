import json
import logging
import queue
import random
import select
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from agent.errors import KubeError
from agent.kube import Patience, PodList, WatchEvent, connect
from agent.pod_watch import PodGone, PodIs, PodWatch, WatchHealth
from agent.pods import parse
from tests.api_server import NODE, pod

A, B = "a" * 64, "b" * 64
SECONDS = 20.0  # for what should take milliseconds
ALL_IS_WELL = WatchHealth(synced=True, connected=True)


class Waits:
    """What stands for waiting: the test is told for how long, and says when it is over."""

    def __init__(self):
        self.asked: queue.Queue[float] = queue.Queue()
        self._over: queue.Queue[None] = queue.Queue()
        self._ended = False

    def __call__(self, event, seconds):
        self.asked.put(seconds)
        if not self._ended:
            self._over.get(timeout=SECONDS)
        return event.is_set()

    def next(self):
        return self.asked.get(timeout=SECONDS)

    def over(self):
        self._over.put(None)

    def end(self):
        self._ended = True
        self._over.put(None)


class View:
    """What a main loop would know."""

    def __init__(self, watch):
        self.watch = watch
        self.pods = {}
        self.changes = []

    def take(self):
        changes = self.watch.take()
        self.changes += changes
        for change in changes:
            if isinstance(change, PodIs):
                self.pods[change.pod.api_uid] = change.pod
            else:
                del self.pods[change.api_uid]

    def until(self, holds, seconds=SECONDS):
        end = time.monotonic() + seconds
        while True:
            self.take()
            if holds():
                return
            assert select.select([self.watch], [], [], max(0.0, end - time.monotonic()))[0], self.pods

    def until_known(self, *names):
        self.until(lambda: {each.name for each in self.pods.values()} == set(names))


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture
def watched(server, tmp_path, waits):
    """Return a function that begins a watch, and a view of it."""
    ends = []

    def watched(patience=Patience(), **world):  # noqa: B008
        client = connect(server.write_kubeconfig(tmp_path / "kubeconfig"), patience=patience)
        watch = PodWatch(client, NODE, **({"random": lambda: 0.5, "wait": waits} | world))
        ends.append((client, watch))
        watch.start()
        return View(watch)

    yield watched
    waits.end()
    for client, watch in ends:
        watch.close()
        server.release()
        server.drop_connections()
        watch._thread.join(SECONDS)
        client.close()


def is_readable(watch):
    return bool(select.select([watch], [], [], 0)[0])


def list_requests(server):
    return [each.query.get("resourceVersion", "") for each in server.requests if not each.watches]


def watch_requests(server):
    return [each.query["resourceVersion"] for each in server.requests if each.watches]


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


# With the API server that behaves


def test_what_is_there_is_told(server, watched):
    server.put_pod(pod("first", containers={"app": A}))
    server.put_pod(pod("second"))
    server.put_pod(pod("elsewhere", node="another"))

    view = watched()
    view.until_known("first", "second")

    assert view.changes[0] == PodIs(pod=parse(pod("first", containers={"app": A})))
    assert view.watch.health == ALL_IS_WELL


def test_what_changes_is_told_in_order(server, watched):
    view = watched()
    server.wait_for_watch()
    web = server.put_pod(pod("web"))
    view.until_known("web")
    server.put_pod(pod("web", containers={"app": A}))
    view.until(lambda: len(view.changes) == 2)
    server.delete_pod(web["metadata"]["uid"])
    view.until_known()

    assert view.changes == [
        PodIs(pod=parse(pod("web"))),
        PodIs(pod=parse(pod("web", containers={"app": A}))),
        PodGone(api_uid=web["metadata"]["uid"]),
    ]


def test_what_does_not_matter_here_is_not_told(server, watched):
    view = watched()
    server.wait_for_watch()
    server.put_pod(pod("web"))
    view.until_known("web")
    server.put_pod(pod("web", labels={"app": "another"}))
    server.put_pod(pod("last"))
    view.until_known("web", "last")

    assert [change.pod.name for change in view.changes] == ["web", "last"]


def test_the_descriptor_is_readable_while_there_is_something(server, watched):
    view = watched()
    server.wait_for_watch()
    assert not is_readable(view.watch)

    server.put_pod(pod("web"))
    view.until_known("web")

    assert not is_readable(view.watch)
    assert view.watch.take() == []


def test_a_watch_that_ends_in_order_goes_on_at_once(server, watched, waits, caplog):
    view = watched(clock=iter(range(0, 1000, 10)).__next__)
    for number in range(3):
        server.wait_until(lambda count=number + 1: len(watch_requests(server)) == count)
        server.wait_for_watch()
        server.put_pod(pod(f"p{number}"))
        server.end_watches()
    view.until_known("p0", "p1", "p2")
    server.wait_until(lambda: len(watch_requests(server)) == 4)

    assert list_requests(server) == ["0"]
    assert watch_requests(server) == ["1000", "1001", "1002", "1003"]
    assert waits.asked.empty()
    assert view.watch.health == ALL_IS_WELL
    assert lines(caplog) == []


def test_watches_end_at_different_times(server, watched):
    watched(random=lambda: 0.25)
    server.wait_for_watch()

    assert server.requests[-1].query["timeoutSeconds"] == "375"


# With one that does not


def test_a_dropped_watch_goes_on_from_where_it_was(server, watched, waits, caplog):
    view = watched()
    server.wait_for_watch()
    server.put_pod(pod("web"))
    web = server.put_pod(pod("web", containers={"app": A}))
    view.until(lambda: view.changes[-1:] == [PodIs(pod=parse(web))])
    server.drop_connections()
    assert waits.next() == pytest.approx(0.05)
    assert not view.watch.health.connected
    server.put_pod(pod("meanwhile"))
    waits.over()
    view.until_known("web", "meanwhile")

    assert list_requests(server) == ["0"]
    assert watch_requests(server) == ["1000", web["metadata"]["resourceVersion"]]
    assert view.watch.health == WatchHealth(synced=True, connected=True, restarts=1)
    assert lines(caplog) == []  # nobody needs to know


def test_bookmarks_move_it_on(server, watched, waits):
    view = watched()
    server.wait_for_watch()
    server.put_pod(pod("elsewhere", node="another"))
    server.send_bookmarks()
    server.put_pod(pod("web"))
    view.until_known("web")
    server.put_pod(pod("elsewhere", node="another", labels={"a": "b"}))
    server.send_bookmarks()
    version = str(server.version)
    server.send({"type": "SOMETHING NEW", "object": {}})
    server.end_watches()

    server.wait_until(lambda: len(watch_requests(server)) == 2)
    assert watch_requests(server)[-1] == version
    assert waits.asked.empty()


@pytest.mark.parametrize("in_stream", [False, True])
def test_where_its_version_is_gone_all_is_listed_again(server, watched, waits, caplog, in_stream):
    server.gone_in_stream = in_stream
    changed, gone, same = (server.put_pod(pod(name)) for name in ("changed", "gone", "same"))
    view = watched()
    view.until_known("changed", "gone", "same")
    view.changes.clear()
    server.wait_for_watch()
    server.put_pod(pod("last"))
    view.until_known("changed", "gone", "same", "last")
    server.drop_connections()
    waits.next()
    server.delete_pod(gone["metadata"]["uid"])
    server.put_pod(pod("changed", containers={"app": B}))
    server.put_pod(pod("new"))
    server.compact()
    waits.over()
    # Neither was of use: the watch that was told 410 is the second one in a row.
    waits.next()
    waits.over()
    view.until_known("changed", "same", "last", "new")

    assert view.changes[1:] == [
        PodGone(api_uid=gone["metadata"]["uid"]),
        PodIs(pod=parse(pod("changed", containers={"app": B}))),
        PodIs(pod=parse(pod("new"))),
    ]
    assert same["metadata"]["uid"] in view.pods
    assert changed["metadata"]["uid"] in view.pods
    assert list_requests(server) == ["0", ""]
    assert view.watch.health == WatchHealth(synced=True, connected=True, restarts=2)
    assert lines(caplog) == []


def test_an_open_watch_that_expires_is_no_failure(server, watched, waits, caplog):
    view = watched()
    server.wait_for_watch()
    server.put_pod(pod("web"))
    view.until_known("web")
    server.expire_watches()
    server.wait_until(lambda: len(watch_requests(server)) == 2)
    server.put_pod(pod("after"))
    view.until_known("web", "after")

    assert waits.asked.empty()
    assert view.watch.health == WatchHealth(synced=True, connected=True, restarts=1)
    assert lines(caplog) == []


def test_an_api_server_that_restarts_is_waited_for(server, watched, waits, caplog):
    view = watched()
    server.wait_for_watch()
    server.put_pod(pod("web"))
    view.until_known("web")
    server.refuse()
    seconds = []
    for _ in range(12):
        seconds.append(waits.next())
        refused = view.watch.health
        if len(seconds) < 12:
            waits.over()

    assert seconds == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15, 15, 15])
    assert refused == WatchHealth(
        synced=True,
        connected=False,
        error=f"the API server at {server.url} cannot be reached: connection refused",
        restarts=12,
    )

    server.put_pod(pod("meanwhile"))
    server.listen()
    waits.over()
    view.until_known("web", "meanwhile")

    assert view.watch.health == WatchHealth(synced=True, connected=True, restarts=12)
    lost, back = lines(caplog)
    assert lost == f"pods are not watched, what is protected stays protected: {refused.error}"
    assert back.startswith("pods are watched again after ")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_api_server_that_is_unwell_is_waited_for(server, watched, waits, status):
    server.put_pod(pod("web"))
    server.fail(status, 2)
    server.fail(status, 2, watch=True)
    view = watched()
    seconds = []
    for _ in range(4):
        seconds.append(waits.next())
        waits.over()
    view.until_known("web")

    assert seconds == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert len(list_requests(server)) == 3
    assert view.watch.health.restarts == 4


def test_an_api_server_that_is_slow_to_start_is_waited_for(server, watched):
    server.put_pod(pod("web"))
    server.hold()
    view = watched()
    server.wait_for_requests(1)
    assert view.watch.health == WatchHealth()

    server.release()
    view.until_known("web")


def test_an_api_server_that_hangs_is_given_up(server, watched, waits):
    server.put_pod(pod("web"))
    server.hold()
    view = watched(Patience(answer=0.1))
    waits.next()
    assert view.watch.health.error == f"the API server at {server.url} cannot be reached: it does not answer"

    server.release()
    waits.over()
    view.until_known("web")


def test_a_watch_that_goes_silent_is_begun_again(server, watched, caplog):
    view = watched(Patience(silence=0.1), clock=iter(range(0, 10_000, 10)).__next__)
    server.wait_for_watch()
    server.frozen = True
    server.wait_until(lambda: len(watch_requests(server)) >= 3)
    server.frozen = False
    server.put_pod(pod("web"))
    view.until_known("web")

    assert view.watch.health == ALL_IS_WELL
    assert lines(caplog) == []


def test_rights_that_are_missing_are_asked_for_once(server, watched, waits, caplog):
    server.put_pod(pod("web"))
    server.fail(403, None)
    view = watched()
    for _ in range(3):
        assert waits.next() == pytest.approx(22.5)
        error = view.watch.health.error
        waits.over()
    assert error == "the API server refuses to list pods (403): apply the ClusterRole of daemonset.yaml"
    assert lines(caplog) == [f"pods are not watched, what is protected stays protected: {error}"]

    waits.next()
    server.heal()
    waits.over()
    view.until_known("web")


# Turn by turn, without a thread


class Stream:
    """A watch that says what it was made to say."""

    def __init__(self, said):
        self.said = said
        self.interrupted = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def interrupt(self):
        self.interrupted += 1

    def __iter__(self):
        for each in self.said:
            if isinstance(each, Exception):
                raise each
            yield WatchEvent(type=each[0], object=each[1])


class Client:
    """An API server whose answers are given one by one; it has no pods once they are over."""

    def __init__(self, *, lists=(), watches=()):
        self.lists = list(lists)
        self.watches = list(watches)

    def list_pods(self, *_):
        answer = self.lists.pop(0) if self.lists else []
        if isinstance(answer, Exception):
            raise answer
        return PodList(resource_version="7", pods=answer)

    def watch_pods(self, *_):
        answer = self.watches.pop(0) if self.watches else []
        if isinstance(answer, Exception):
            raise answer
        return Stream(answer)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def scripted(clock):
    made = []

    def scripted(**answers):
        watch = PodWatch(Client(**answers), NODE, clock=clock, random=lambda: 1.0)
        made.append(watch)
        return watch

    yield scripted
    for watch in made:
        watch.close()


AWAY = KubeError("nobody there")
REFUSED = KubeError("not for you", status=403)
GONE = KubeError("too old", status=410)


def test_what_the_loop_has_not_taken_is_kept_once_for_each_pod(scripted):
    first, second, brief = pod("first"), pod("second"), pod("brief")
    events = [("ADDED", first), ("ADDED", second), ("ADDED", brief)]
    events += [("MODIFIED", pod("first", containers={"app": f"{number:064x}"})) for number in range(100)]
    events += [("DELETED", brief)]
    watch = scripted(watches=[events, [("DELETED", first), ("MODIFIED", pod("second", host_pid=True))], []])

    watch._turn()
    assert watch.take() == [
        PodIs(pod=parse(second)),
        PodIs(pod=parse(pod("first", containers={"app": f"{99:064x}"}))),
    ]

    watch._turn()
    assert watch.take() == [
        PodGone(api_uid=first["metadata"]["uid"]),
        PodIs(pod=parse(pod("second", host_pid=True))),
    ]


def test_a_pod_that_came_and_went_leaves_nothing_behind(scripted):
    watch = scripted(watches=[[("ADDED", pod("brief")), ("DELETED", pod("brief"))]])
    watch._turn()

    assert watch.take() == []
    assert not is_readable(watch)
    assert watch._changes._pending == {}
    assert watch._changes._told == set()
    assert watch._pods == {}
    assert watch._owners == {}


def test_a_pod_of_the_same_name_is_another_pod(scripted):
    old, new = pod("web", uid="old"), pod("web", uid="new")
    watch = scripted(lists=[[old]], watches=[[], [("DELETED", old), ("ADDED", new)]])
    watch._turn()
    watch.take()
    watch._turn()

    assert watch.take() == [PodGone(api_uid="old"), PodIs(pod=parse(new))]


def test_what_is_deleted_and_unknown_is_no_news(scripted):
    watch = scripted(watches=[[("DELETED", pod("web"))]])
    watch._turn()

    assert watch.take() == []


def test_watches_that_are_of_no_use_are_not_begun_again_at_once(scripted, clock):
    watch = scripted()
    assert [watch._turn() for _ in range(4)] == pytest.approx([0.0, 0.2, 0.4, 0.8])


def test_a_watch_that_told_something_or_lasted_was_of_use(scripted, clock):
    class Lasting(list[object]):
        def __iter__(self):
            clock.now += 5
            return iter(())

    watch = scripted(watches=[AWAY, AWAY, [("ADDED", pod("web"))], [], Lasting(), [], [AWAY]])

    assert [watch._turn() for _ in range(7)] == pytest.approx([0.1, 0.2, 0.0, 0.2, 0.0, 0.2, 0.4])


def test_a_version_that_goes_again_and_again_is_not_asked_for_at_once(scripted):
    watch = scripted(watches=[[("ADDED", pod("web")), GONE], GONE, GONE, [GONE]], lists=[[], GONE])

    assert [watch._turn() for _ in range(5)] == pytest.approx([0.0, 0.2, 0.4, 0.8, 1.6])
    assert watch.health.restarts == 5
    assert watch.health.error == ""


@pytest.mark.parametrize("said", [[[], 5], {}, None])
def test_an_event_may_be_about_nothing(scripted, said, caplog):
    watch = scripted(watches=[[("ADDED", {"metadata": said}), ("BOOKMARK", {"metadata": said}), ("X", {})]])
    watch._turn()

    assert watch._version == "7"
    assert watch.take() == []
    assert watch.health.mistakes == 1
    assert lines(caplog) == ["the API server sent a pod without uid"]


def test_a_pod_that_is_none_leaves_the_others(scripted):
    watch = scripted(lists=[[{}, pod("web"), {"metadata": {"uid": "u"}}]])
    watch._turn()

    assert [change.pod.name for change in watch.take()] == ["web"]
    assert watch.health.mistakes == 2


def test_a_mistake_in_a_pod_is_told_once(scripted, caplog):
    def mistaken(name, word, *, host_pid=False):
        return pod(name, namespace="shop", labels={"cloudtaser.io/inject": word}, host_pid=host_pid)

    events = [
        ("ADDED", mistaken("a", "maybe")),
        ("MODIFIED", mistaken("a", "maybe", host_pid=True)),
        ("MODIFIED", mistaken("a", "true")),
        ("MODIFIED", mistaken("a", "maybe")),
        ("ADDED", mistaken("b", "maybe")),
    ]
    watch = scripted(watches=[events])
    watch._turn()

    assert lines(caplog) == [
        f'pod shop/{name}: label cloudtaser.io/inject is "maybe", not "true" or "false": ignored'
        for name in "ab"
    ]
    assert watch.health.mistakes == 2


def test_mistakes_are_all_counted_and_some_told(scripted, clock, caplog):
    events = [
        ("MODIFIED", pod("web", labels={"cloudtaser.io/inject": f"m{number}"})) for number in range(1500)
    ]
    watch = scripted(watches=[events, [("MODIFIED", pod("web", labels={"cloudtaser.io/inject": "last"}))]])
    watch._turn()

    assert len(caplog.records) == 20
    assert watch.health.mistakes == 1500
    assert len(watch._mistakes._known) == 1024

    clock.now = 61.0
    watch._turn()
    assert len(caplog.records) == 21


def test_nobody_can_pass_for_a_static_pod_that_is_there(scripted, caplog):
    static = {"kubernetes.io/config.mirror": "0123456789abcdef" * 2}
    real = pod("proxy", namespace="kube-system", annotations=static)
    made_up = pod("other", annotations=static | {"cloudtaser.io/inject": "false"})
    watch = scripted(
        lists=[[real]],
        watches=[
            [("ADDED", made_up), ("MODIFIED", made_up), ("DELETED", made_up)],
            [("DELETED", real), ("ADDED", made_up)],
        ],
    )
    watch._turn()
    assert watch.take() == [PodIs(pod=parse(real))]
    assert watch.health.mistakes == 1
    assert lines(caplog) == [
        "pod default/other: it says that it is a static pod which another one is: ignored",
    ]

    watch._turn()
    assert watch.take() == [PodGone(api_uid=real["metadata"]["uid"]), PodIs(pod=parse(made_up))]


def test_a_pod_that_becomes_a_static_one_is_one_pod(scripted):
    static = {"kubernetes.io/config.mirror": "0123456789abcdef" * 2}
    before, after = pod("web"), pod("web", annotations=static)
    watch = scripted(watches=[[("ADDED", before), ("MODIFIED", after), ("DELETED", after)]])
    watch._turn()

    assert watch._owners == {}


def test_an_outage_is_one_line_and_its_end_another(scripted, clock, caplog):
    event = [("ADDED", pod("web"))]
    watch = scripted(watches=[AWAY, AWAY, event, [AWAY], AWAY, event, AWAY, AWAY, event])
    for _ in range(9):
        watch._turn()
        clock.now += 10

    assert lines(caplog) == [
        "pods are not watched, what is protected stays protected: nobody there",  # at 0
        "pods are watched again after 20 s",
        # From 30 to 50 and from 60 to 80: once a minute is enough for it.
        "pods are not watched, what is protected stays protected: nobody there",  # at 70
        "pods are watched again after 20 s",
    ]


def test_an_outage_that_becomes_a_refusal_is_told(scripted, caplog):
    watch = scripted(lists=[AWAY, AWAY, REFUSED, AWAY, REFUSED])
    for _ in range(5):
        watch._turn()

    assert lines(caplog) == [
        "pods are not watched, what is protected stays protected: nobody there",
        "pods are not watched, what is protected stays protected: not for you",
    ]


def test_a_mistake_of_the_agents_own_does_not_end_it(scripted, caplog):
    watch = scripted(lists=[ZeroDivisionError("oh"), ZeroDivisionError("oh"), [pod("web")]])
    assert [watch._turn() for _ in range(2)] == pytest.approx([0.1, 0.2])
    assert watch.health.error == "a mistake of the agent's own: ZeroDivisionError('oh')"
    watch._turn()

    assert len(watch.take()) == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING, logging.WARNING]


# The end


@contextmanager
def within(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def test_it_ends_at_once_while_it_watches(server, watched, caplog):
    view = watched()
    server.wait_for_watch()
    server.put_pod(pod("web"))
    view.until_known("web")
    with within(0.7):
        view.watch.close()

    assert not view.watch._thread.is_alive()
    assert view.watch.take() == []
    assert view.watch.health == ALL_IS_WELL
    assert lines(caplog) == []
    view.watch.close()


def test_it_ends_at_once_while_it_waits(server, watched):
    waiting = threading.Event()

    def wait(event, seconds):
        waiting.set()
        return event.wait(seconds)

    server.fail(403, None)
    view = watched(wait=wait)
    assert waiting.wait(SECONDS)
    with within(0.7):
        view.watch.close()

    assert not view.watch._thread.is_alive()


def test_it_ends_within_a_second_while_nobody_answers(server, watched):
    server.put_pod(pod("web"))
    server.hold()
    view = watched()
    server.wait_for_requests(1)
    with within(1.5):
        view.watch.close()
    server.release()
    view.watch._thread.join(SECONDS)

    assert not view.watch._thread.is_alive()  # and what it heard too late went nowhere
    assert view.watch.take() == []


def test_a_watch_that_opens_too_late_is_left(scripted):
    watch = scripted(watches=[[("ADDED", pod("web"))]])
    watch._stopping.set()
    watch._turn()

    assert watch.take() == []
    watch.start()
    watch._thread.join(SECONDS)
    assert not watch._thread.is_alive()


def test_it_may_end_before_it_begins(scripted):
    scripted().close()


# All at once


class Churn:
    """A thousand pods that come, change and go, and an API server that fails in every way meanwhile."""

    def __init__(self, server, seed):
        self.server = server
        self.random = random.Random(seed)
        self.alive = {}
        self.number = 0

    def step(self):
        match self.random.choices(["put", "change", "delete", "fault"], [10, 10, 9, 1])[0]:
            case "change" if self.alive:
                name = self.random.choice(list(self.alive))
                self.put(name)
            case "delete" if len(self.alive) > 100:
                self.server.delete_pod(self.alive.pop(self.random.choice(list(self.alive))))
            case "fault":
                self.fault()
            case _:
                self.number += 1
                self.put(f"pod-{self.number}")

    def put(self, name):
        id_ = f"{self.random.getrandbits(256):064x}"
        stored = self.server.put_pod(pod(name, containers={"app": id_}))
        self.alive[name] = stored["metadata"]["uid"]

    # Mostly while a watch is open: a fault that nobody meets proves little.
    def fault(self):
        server = self.server
        if self.random.random() < 0.8:
            server.wait_for_watch()
        match self.random.choice(
            ["drop", "compact", "expire", "end", "bookmark", "stale", "fail", "restart"]
        ):
            case "drop":
                server.drop_connections()
            case "compact":
                server.compact()
            case "expire":
                server.expire_watches()
            case "end":
                server.end_watches()
            case "bookmark":
                server.send_bookmarks()
            case "stale":
                server.gone_in_stream = not server.gone_in_stream
                server.compact()
                server.drop_connections()
            case "fail":
                server.fail(self.random.choice([429, 500, 503]))
                server.drop_connections()
            case _:
                server.refuse()
                server.listen()


# An agent's process with nothing but the watch: it tells what it knows, and what that takes, for each line.
FOLLOWER = """
import gc, json, select, sys
from pathlib import Path
from agent.kube import connect
from agent.pod_watch import PodIs, PodWatch

client = connect(Path(sys.argv[1]))
watch = PodWatch(client, sys.argv[2], wait=lambda event, seconds: event.wait(seconds / 100))
watch.start()
pods = {}
while True:
    ready = select.select([watch, sys.stdin], [], [])[0]
    for change in watch.take():
        if isinstance(change, PodIs):
            pods[change.pod.api_uid] = change.pod
        else:
            del pods[change.api_uid]
    if sys.stdin in ready:
        if not sys.stdin.readline():
            break
        gc.collect()
        told = {uid: [each.id for each in pod.containers] for uid, pod in pods.items()}
        resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS:")).split()[1]
        health = {"restarts": watch.health.restarts, "mistakes": watch.health.mistakes}
        state = {"pods": told, "blocks": sys.getallocatedblocks(), "resident_kib": int(resident)}
        print(json.dumps(state | health), flush=True)
watch.close()
client.close()
"""


class Follower:
    def __init__(self, kubeconfig):
        self._process = subprocess.Popen(
            [sys.executable, "-c", FOLLOWER, str(kubeconfig), NODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._ask, self._answers = self._process.stdin, self._process.stdout

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ask.close()
        assert self._process.wait(SECONDS) == 0
        self._answers.close()

    def state(self):
        self._ask.write("\n")
        self._ask.flush()
        return json.loads(self._answers.readline())

    def until(self, holds):
        end = time.monotonic() + SECONDS
        while not holds(state := self.state()):
            assert time.monotonic() < end, state
        return state


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_pods_are_churned_and_none_is_missed(server, tmp_path, seed):
    churn = Churn(server, seed)

    def knows_all(state):
        there = server.pods().items()
        return state["pods"] == {uid: [each.id for each in parse(raw).containers] for uid, raw in there}

    halves = []
    with Follower(server.write_kubeconfig(tmp_path / "kubeconfig")) as follower:
        for pods in (500, 1000):
            while churn.number < pods:
                churn.step()
            while len(churn.alive) > 50:
                server.delete_pod(churn.alive.popitem()[1])
            follower.until(knows_all)
            server.wait_for_watch()
            churn.put("last")  # once it is known, what a list took has been let go of
            halves.append(follower.until(knows_all))
    first, second = halves

    assert len(second["pods"]) == 51
    assert second["mistakes"] == 0
    assert second["restarts"] > 10
    # 500 pods came and went in between, and each that left a word behind would be a block. Measured were
    # 30 blocks and 250 KiB.
    assert second["blocks"] < first["blocks"] + 250
    assert second["resident_kib"] < first["resident_kib"] + 1024
