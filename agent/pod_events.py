"""Kubernetes Events on the pods that a blocked attempt was about.

A flood of attacks is a count, not a flood of Events: one Event for each pod, role in it, vector and outcome,
posted at once and then patched now and then. `emit` only counts; a thread of its own talks to the API server
and keeps the counts while nobody answers.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agent.errors import KubeError
from agent.event_text import Role, message

_log = logging.getLogger(__name__)

_EVENTS = 512  # nine vectors, two outcomes and two roles make 36 for a pod
_BURST = 25.0  # writes at once, as client-go's recorder has it, and then so many
_PER_SECOND = 1.0
_PATCH_EVERY_SECONDS = 10.0
_PATIENCE_SECONDS = 1.0  # at the end
_OUTCOMES = frozenset({"killed", "denied"})
_NAME_BYTES = 253
_INT32_MAX = 2**31 - 1  # `count` is an int32
_BACK_OFF_MAX_SECONDS = 60.0
_RARELY_SECONDS = 300.0
_COMPLAINT_EVERY_SECONDS = 3600.0


class EventClient(Protocol):
    """The part of `agent.kube.Client` that writes Events; both raise `KubeError`."""

    def create_event(self, namespace: str, body: dict[str, Any]) -> object:
        """Store a new Event."""
        ...

    def patch_event(self, namespace: str, name: str, body: dict[str, Any]) -> object:
        """Merge `body` into a stored Event."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Clocks in seconds and nanoseconds since 1970, a number from 0 to 1, and how to wait for an event."""

    monotonic: Callable[[], float] = time.monotonic
    time_ns: Callable[[], int] = time.time_ns
    random: Callable[[], float] = random.random
    wait: Callable[[threading.Event, float | None], bool] = threading.Event.wait


_WORLD = World()


# Nothing that an attacker chooses is part of it: they would make as many Events as they like.
@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    pod_uid: str
    role: Role
    vector: str
    outcome: str


@dataclass(slots=True, kw_only=True)
class _Tally:
    key: _Key
    namespace: str
    pod: str
    first_time: str
    last: Mapping[str, Any]
    due: float
    seen: int = 0
    told: int = 0
    name: str = ""  # of the Event
    stored: bool = False
    field_path: str | None = None
    failures: int = 0

    @property
    def pending(self) -> int:
        return self.seen - self.told


class PodEvents:
    """A sink that tells killed and denied attempts as Events on the target's pod and the offender's.

    The count of an Event is of the attempts that were reported: in a flood the kernel reports some and
    counts all, so the metrics have the true number.
    """

    def __init__(self, client: EventClient, *, node: str, instance: str, world: World = _WORLD) -> None:
        """Write through `client`, in the name of the agent `instance` (its pod) on `node`."""
        self.dropped = 0  # attempts, once for each pod that should have heard of them
        self.errors = 0  # calls that the API server did not answer as it should
        self.enabled = True  # may change at any time: False takes nothing new
        self._client = client
        self._node = node
        self._instance = instance
        self._world = world
        # The loop's thread counts, ours writes; what both change is `dropped`, and of a tally `seen`, `told`
        # and `last`.
        self._guard = threading.Lock()
        self._tallies: dict[_Key, _Tally] = {}  # the least recently counted first
        self._bucket = _Bucket(world.monotonic())
        self._back_off_seconds = 0.0
        self._resume_at = 0.0
        self._refused_until: dict[str, float] = {}  # by namespace
        self._complain_at: dict[str, float] = {}
        self._closing = False
        self._over = False
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pod-events", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def emit(self, event: Mapping[str, Any]) -> None:
        """Count an attempt that was killed or denied; everything else is not told here."""
        if not self.enabled or event["type"] != "attempt" or event["outcome"] not in _OUTCOMES:
            return
        with self._guard:
            for role in _roles(event):
                self._count(role, event)

    def close(self) -> None:
        """Write what is pending if that takes no longer than a second, and count the rest as dropped."""
        with self._guard:
            self._closing = True
        self._wake.set()
        if self._thread.is_alive() and self._world.wait(self._ended, _PATIENCE_SECONDS):
            self._thread.join()
        with self._guard:
            self._over = True
            for tally in self._tallies.values():
                self._drop(tally)

    def _count(self, role: Role, event: Mapping[str, Any]) -> None:
        if self._over:
            self.dropped += 1
            return
        pod = event[role]
        key = _Key(pod_uid=pod["pod_uid"], role=role, vector=event["vector"], outcome=event["outcome"])
        tally = self._tallies.pop(key, None)
        if tally is None:
            if len(self._tallies) >= _EVENTS:
                self._evict()
            tally = _Tally(
                key=key,
                namespace=pod["namespace"],
                pod=pod["pod"],
                first_time=_timestamp(event),
                last=event,
                due=self._world.monotonic(),
            )
        self._tallies[key] = tally
        tally.last = event
        tally.seen += 1
        if tally.pending == 1:
            self._wake.set()

    def _evict(self) -> None:
        oldest = next(iter(self._tallies.values()))
        victim = next((each for each in self._tallies.values() if not each.pending), oldest)
        self._drop(victim)
        del self._tallies[victim.key]

    def _drop(self, tally: _Tally) -> None:
        self.dropped += tally.pending
        tally.told = tally.seen

    def _run(self) -> None:
        try:
            while (seconds := self._step()) is not None or not self._closing:
                if seconds != 0:
                    self._world.wait(self._wake, seconds)
                    self._wake.clear()
        finally:
            self._ended.set()

    # Make the call that is due most. Return in how many seconds to come again; None: when there is news.
    def _step(self) -> float | None:
        now = self._world.monotonic()
        with self._guard:
            pending = [each for each in self._tallies.values() if each.pending]
            if not pending:
                return None
            tally = min(pending, key=lambda each: self._rank(each, now))
            seconds = max(self._due(tally) - now, self._bucket.seconds_until_one(now))
            if seconds > 0:
                return seconds
            seen, last = tally.seen, tally.last
        self._bucket.take()
        tally.name = tally.name or _unique_name(tally.pod, self._world.time_ns())
        try:
            self._write(tally, seen, last)
        except KubeError as error:
            self._failed(tally, error)
        except Exception:  # noqa: BLE001 - the thread goes on whatever a client does
            self.errors += 1
            _log.exception("an Event on a pod could not be written")
            self._give_up(tally)
        else:
            self._written(tally, seen)
        return 0.0

    def _due(self, tally: _Tally) -> float:
        if self._closing:
            return 0.0
        return max(tally.due, self._resume_at, self._refused_until.get(tally.namespace, 0.0))

    # Of those that are due a new Event goes before more of a known one, and what has failed after all others:
    # neither a flood nor an Event that the API server cannot digest holds up the rest.
    def _rank(self, tally: _Tally, now: float) -> tuple[float, int, bool, float]:
        return (max(now, self._due(tally)), tally.failures, tally.stored, tally.due)

    def _write(self, tally: _Tally, seen: int, last: Mapping[str, Any]) -> None:
        role = tally.key.role
        news: dict[str, Any] = {
            "message": message(role, last),
            "lastTimestamp": _timestamp(last),
            "count": min(seen, _INT32_MAX),
        }
        path = _field_path(last[role])
        if not tally.stored:
            self._client.create_event(tally.namespace, self._body(tally, path) | news)
        else:
            if path != tally.field_path:  # all of it tells of the latest attempt
                news["involvedObject"] = {"fieldPath": path}
            self._client.patch_event(tally.namespace, tally.name, news)
        tally.field_path = path

    def _body(self, tally: _Tally, path: str | None) -> dict[str, Any]:
        namespace, uid = tally.namespace, tally.key.pod_uid
        pod = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": tally.pod, "uid": uid}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": namespace, "name": tally.name},
            "involvedObject": pod if path is None else pod | {"fieldPath": path},
            "type": "Warning",
            "reason": "CloudTaserBlocked",
            "action": "Blocked",
            "firstTimestamp": tally.first_time,
            "source": {"component": "cloudtaser-ebpf", "host": self._node},
            "reportingComponent": "cloudtaser.io/ebpf",
            "reportingInstance": self._instance,
        }

    def _written(self, tally: _Tally, seen: int) -> None:
        with self._guard:
            tally.told = max(tally.told, seen)
        tally.stored = True
        tally.failures = 0
        tally.due = self._world.monotonic() + _PATCH_EVERY_SECONDS
        self._back_off_seconds = 0.0

    def _failed(self, tally: _Tally, error: KubeError) -> None:
        now = self._world.monotonic()
        match error.status:
            case 404 if tally.stored:  # Events expire, in an hour unless the cluster is told otherwise
                tally.stored, tally.name = False, ""
                return
            case 409 if not tally.stored:  # ours, from a try whose answer was lost
                tally.stored = True
                return
        self.errors += 1
        if self._closing or error.status == 404 or "being terminated" in str(error):
            self._give_up(tally)
        elif error.status == 403:
            for namespace in [each for each, until in self._refused_until.items() if until <= now]:
                del self._refused_until[namespace]
            self._refused_until[tally.namespace] = now + _RARELY_SECONDS
            self._complain("403", f"{error}, or set pod-events: false")
        elif _may_pass(error.status):
            tally.failures += 1
            self._back_off_seconds = min(_BACK_OFF_MAX_SECONDS, self._back_off_seconds * 2 or 1.0)
            self._resume_at = now + self._back_off_seconds * (0.5 + self._world.random() / 2)
            self._complain("away", f"{error} (kept, and tried again)")
        else:
            self._give_up(tally)
            self._complain(str(error.status), str(error))

    # The namespace is gone or going, or the API server will never take this Event. What comes later is
    # tried again, but rarely.
    def _give_up(self, tally: _Tally) -> None:
        with self._guard:
            self._drop(tally)
        tally.stored, tally.name = False, ""
        tally.due = self._world.monotonic() + _RARELY_SECONDS

    def _complain(self, kind: str, text: str) -> None:
        now = self._world.monotonic()
        if now >= self._complain_at.get(kind, now):
            self._complain_at[kind] = now + _COMPLAINT_EVERY_SECONDS
            _log.warning("Events on pods are not written: %s", text)


class _Bucket:
    """Tokens for writes: a burst, and then so many a second."""

    def __init__(self, now: float) -> None:
        self._tokens = _BURST
        self._filled_at = now

    def seconds_until_one(self, now: float) -> float:
        """Fill up and return how long it takes until there is a token; 0 if there is one."""
        self._tokens = min(_BURST, self._tokens + (now - self._filled_at) * _PER_SECOND)
        self._filled_at = now
        return max(0.0, (1.0 - self._tokens) / _PER_SECOND)

    def take(self) -> None:
        """Use one up."""
        self._tokens -= 1.0


# What another try may mend: nobody there, a token that has just expired, a conflict, too many requests.
def _may_pass(status: int | None) -> bool:
    return status is None or status >= 500 or status in {401, 408, 409, 429}


# One pod gets one Event: that the offender sits in the same pod is told to the target.
def _roles(event: Mapping[str, Any]) -> Iterator[Role]:
    told: set[str] = set()
    for role in (Role.TARGET, Role.OFFENDER):
        about = event[role]
        known = about.get("pod_uid") and about.get("namespace") and about.get("pod")
        if known and about["pod_uid"] not in told:
            told.add(about["pod_uid"])
            yield role


# As client-go does it, within what a name may be: labels between dots end in a letter or digit.
def _unique_name(pod: str, time_ns: int) -> str:
    suffix = f".{time_ns:x}"
    return pod[: _NAME_BYTES - len(suffix)].rstrip("-.") + suffix


def _field_path(task: Mapping[str, Any]) -> str | None:
    return f"spec.containers{{{task['container']}}}" if task.get("container") else None


def _timestamp(event: Mapping[str, Any]) -> str:
    return f"{event['time'][:19]}Z"  # whole seconds, as the API has it
