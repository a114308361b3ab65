"""The pods of this node, as a thread of its own hears of them by list-and-watch.

The API server is asked for what there is, and then for what changes from that version on. A watch that ends
or breaks goes on from the last version heard of; where that version is gone (410) all is listed again, and
the difference told. While nobody answers, the pods last heard of stay as they are.

The main loop takes changes when it likes. Of each pod only the latest is kept for it, so a loop that is late
costs no memory.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from agent.errors import KubeError
from agent.kube import PodList, WatchEvent
from agent.pods import Pod, PodError, parse

_log = logging.getLogger(__name__)

_BACK_OFF_SECONDS, _BACK_OFF_MAX_SECONDS = 0.1, 30.0
_WATCH_SECONDS = 300.0  # to twice that, so that not all nodes come at once
_USEFUL_SECONDS = 1.0  # a watch that ends sooner and told nothing is as good as none
_PATIENCE_SECONDS = 0.8  # at the end, for a thread that hangs in a request: it holds nothing but that
_COMPLAINT_EVERY_SECONDS = 60.0
_REFUSED = frozenset({401, 403})
_REMEMBERED = 1024  # mistakes that are not told twice
_LINES_A_MINUTE = 20  # about mistakes: whoever can make pods can make any number


class Stream(AbstractContextManager["Stream"], Protocol):
    """An open watch; see `agent.kube.PodStream`."""

    def interrupt(self) -> None:
        """Make whoever iterates get a `KubeError` at once; called from another thread."""
        ...

    def __iter__(self) -> Iterator[WatchEvent]:
        """Yield events as they come, or raise a `KubeError`."""
        ...


class PodClient(Protocol):
    """The part of `agent.kube.Client` that lists and watches; both raise `KubeError`."""

    def list_pods(self, node: str, resource_version: str) -> PodList:
        """Return the pods of a node, not older than a version; "0" is any and "" the latest."""
        ...

    def watch_pods(self, node: str, resource_version: str, seconds: float) -> Stream:
        """Begin to watch from a version on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PodIs:
    """The pod is new, or differs from what was told before."""

    pod: Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class PodGone:
    """A pod that was told of is no more."""

    api_uid: str


Change = PodIs | PodGone


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchHealth:
    """How the watch is doing.

    `synced`: it has listed at least once. `connected`: the API server answers now. `error`: why it does not,
    one line, or "". `restarts`: how often it had to begin anew because the watch broke or its version was
    gone. `mistakes`: things in pods that could not be understood, each counted once.
    """

    synced: bool = False
    connected: bool = False
    error: str = ""
    restarts: int = 0
    mistakes: int = 0


class PodWatch:
    """Follows the pods of one node from `start` to `close`."""

    def __init__(
        self,
        client: PodClient,
        node: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """Follow the pods of `node`.

        `clock` is in seconds and goes on steadily, `random` is from 0 to 1, `wait` takes an event and for how
        many seconds to wait for it.
        """
        self.health = WatchHealth()
        self._client = client
        self._node = node
        self._clock = clock
        self._random = random
        self._wait = wait
        self._changes = _Changes()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pod-watch", daemon=True)
        self._guard = threading.Lock()
        self._stream: Stream | None = None  # the open one, for `close` to break
        # The thread's own from here on.
        self._pods: dict[str, Pod] = {}  # by metadata.uid
        self._owners: dict[str, str] = {}  # metadata.uid by the uid that cgroups have
        self._version: str | None = None  # None: to be listed
        self._list_from = "0"
        self._failures = 0  # turns in a row that were of no use
        self._outage = _Outage()
        self._mistakes = _Mistakes()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `take` has something."""
        return self._changes.fd

    def take(self) -> list[Change]:
        """Return what has changed since the last call, of each pod the latest, in the order of the changes.

        A pod that came and went in between is left out.
        """
        return self._changes.take()

    def close(self) -> None:
        """Stop within a second, whatever the API server does."""
        self._stopping.set()
        with self._guard:
            if self._stream is not None:
                self._stream.interrupt()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_SECONDS)
        self._changes.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            seconds = self._turn()
            if seconds > 0:
                self._wait(self._stopping, seconds)

    # List if need be, and watch until that ends. Return how long to wait before the next turn.
    def _turn(self) -> float:
        try:
            if self._version is None:
                self._version = self._list()
            self._follow(self._version)
        except KubeError as error:
            return self._failed(error)
        except Exception as error:  # noqa: BLE001 - this thread is all that hears of pods: it goes on
            if self._failures == 0:
                _log.exception("the watch of pods made a mistake of its own")
            self._version = None
            return self._failed(KubeError(f"a mistake of the agent's own: {error!r}"))
        return self._ended()

    def _list(self) -> str:
        listed = self._client.list_pods(self._node, self._list_from)
        self._list_from = ""  # from now on an old list would go back in time
        pods = [pod for pod in map(self._parsed, listed.pods) if pod is not None]
        for api_uid in self._pods.keys() - {pod.api_uid for pod in pods}:
            self._gone(api_uid)
        for pod in pods:
            self._is(pod)
        self._works()
        return listed.resource_version

    def _follow(self, version: str) -> None:
        seconds = _WATCH_SECONDS * (1 + self._random())
        with self._client.watch_pods(self._node, version, seconds) as stream, self._interruptible(stream):
            if self._stopping.is_set():
                return  # `close` was too early to see the stream
            self._works()
            if text := self._outage.over(self._clock()):
                _log.warning(text)
            useful_at = self._clock() + _USEFUL_SECONDS
            try:
                for event in stream:
                    self._hear(event)
                    self._failures = 0
            finally:
                if self._clock() >= useful_at:
                    self._failures = 0

    @contextmanager
    def _interruptible(self, stream: Stream) -> Iterator[None]:
        with self._guard:
            self._stream = stream
        try:
            yield
        finally:
            with self._guard:
                self._stream = None

    def _hear(self, event: WatchEvent) -> None:
        if event.type in ("ADDED", "MODIFIED", "DELETED") and (pod := self._parsed(event.object)):
            if event.type == "DELETED":
                self._gone(pod.api_uid)
            else:
                self._is(pod)
        metadata = event.object.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        if isinstance(version, str):
            self._version = version

    def _parsed(self, raw: dict[str, Any]) -> Pod | None:
        try:
            return parse(raw)
        except PodError as error:
            self._mistaken(None, str(error))
            return None

    def _is(self, pod: Pod) -> None:
        before = self._pods.get(pod.api_uid)
        if pod == before:
            return
        # Two static pods of one hash cannot be on a node, so one of them is made up: who came first stays.
        if self._owners.setdefault(pod.uid, pod.api_uid) != pod.api_uid:
            self._mistaken(pod, "it says that it is a static pod which another one is: ignored")
            return
        if before is not None and before.uid != pod.uid:
            del self._owners[before.uid]
        for mistake in pod.mistakes:
            self._mistaken(pod, mistake)
        self._pods[pod.api_uid] = pod
        self._changes.put(pod.api_uid, PodIs(pod=pod))

    def _gone(self, api_uid: str) -> None:
        pod = self._pods.pop(api_uid, None)
        if pod is not None:
            del self._owners[pod.uid]
            self._changes.put(api_uid, PodGone(api_uid=api_uid))

    def _mistaken(self, pod: Pod | None, text: str) -> None:
        if self._mistakes.is_new(pod.api_uid if pod else "", text):
            self.health = replace(self.health, mistakes=self.health.mistakes + 1)
            if self._mistakes.may_be_told(self._clock()):
                _log.warning("%s%s", f"pod {pod.namespace}/{pod.name}: " if pod else "", text)

    def _works(self) -> None:
        self.health = replace(self.health, synced=True, connected=True, error="")

    # The watch ended in order. If it was of use, the next one is due at once.
    def _ended(self) -> float:
        self._failures += 1
        return 0.0 if self._failures == 1 else self._back_off()

    def _failed(self, error: KubeError) -> float:
        if self._stopping.is_set():
            return 0.0
        self.health = replace(self.health, restarts=self.health.restarts + 1)
        if error.status == 410:  # the usual end of a version
            self._version = None
            return self._ended()
        self._failures += 1
        if text := self._outage.goes_on(error, self._failures, self._clock()):
            _log.warning(text)
        self.health = replace(self.health, connected=False, error=str(error))
        if error.status in _REFUSED:  # somebody must change something first
            return _BACK_OFF_MAX_SECONDS * (1 + self._random()) / 2
        return self._back_off()

    # Full jitter: what keeps a whole cluster's agents from coming back at the same moment.
    def _back_off(self) -> float:
        longest = _BACK_OFF_SECONDS * 2.0 ** min(self._failures - 1, 10)
        return self._random() * min(longest, _BACK_OFF_MAX_SECONDS)


class _Changes:
    """What the main loop has not taken yet, of each pod the latest."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._guard = threading.Lock()
        self._pending: dict[str, Change] = {}  # by metadata.uid, the oldest first
        self._told: set[str] = set()  # pods that the main loop knows

    def put(self, api_uid: str, change: Change) -> None:
        with self._guard:
            self._pending.pop(api_uid, None)
            if self.fd < 0 or (isinstance(change, PodGone) and api_uid not in self._told):
                return
            self._pending[api_uid] = change
            os.eventfd_write(self.fd, 1)

    def take(self) -> list[Change]:
        with self._guard:
            if self.fd < 0:
                return []
            with suppress(BlockingIOError):  # nothing was put
                os.eventfd_read(self.fd)
            changes = list(self._pending.values())
            for api_uid, change in self._pending.items():
                if isinstance(change, PodIs):
                    self._told.add(api_uid)
                else:
                    self._told.remove(api_uid)
            self._pending.clear()
            return changes

    def close(self) -> None:
        with self._guard:
            self._pending.clear()
            if self.fd >= 0:
                os.close(self.fd)
            self.fd = -1


class _Outage:
    """What to say of an API server that is away: that it is, and that it is back, at most once a minute."""

    def __init__(self) -> None:
        self._watched = False  # there was something to lose
        self._since: float | None = None
        self._said = False
        self._said_refused = False
        self._quiet_until = 0.0

    # A watch that breaks and goes on at once is no outage. A refusal is said in any case, for it stays until
    # somebody changes something. "": there is nothing to say.
    def goes_on(self, error: KubeError, failures: int, now: float) -> str:
        self._since = now if self._since is None else self._since
        refused = error.status in _REFUSED
        trifling = (failures == 1 and self._watched) or (self._watched and now < self._quiet_until)
        if self._said_refused or (not refused and (self._said or trifling)):
            return ""
        self._said, self._said_refused = True, refused
        self._quiet_until = now + _COMPLAINT_EVERY_SECONDS
        return f"pods are not watched, what is protected stays protected: {error}"

    def over(self, now: float) -> str:
        text = ""
        if self._since is not None and self._said:
            text = f"pods are watched again after {now - self._since:.0f} s"
        self._watched = True
        self._since, self._said, self._said_refused = None, False, False
        return text


class _Mistakes:
    """Which mistakes in pods are new, and how many of them are told."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], None] = {}  # the oldest first
        self._minute = 0
        self._lines = 0

    def is_new(self, api_uid: str, text: str) -> bool:
        key = (api_uid, text)
        new = key not in self._known
        self._known.pop(key, None)
        self._known[key] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        return new

    def may_be_told(self, now: float) -> bool:
        if now // 60 != self._minute:
            self._minute, self._lines = int(now // 60), 0
        self._lines += 1
        return self._lines <= _LINES_A_MINUTE
