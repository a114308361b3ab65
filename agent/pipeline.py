"""From the ring buffer's bytes to the sinks, whatever the bytes are.

Start-up may fail loudly, but the stream never ends: a record that cannot be decoded and a sink that fails
are counted, told now and then, and skipped.
"""

import logging
import time
from collections.abc import Callable, Sequence

from agent.events import (
    Attempt,
    Attribute,
    Clocks,
    DecodeError,
    Event,
    NameSecret,
    as_dict,
    decode,
    nameless,
    nowhere,
)
from agent.sinks import Sink

_log = logging.getLogger(__name__)

# The offset between two clocks that are read one after the other varies by less than a microsecond.
# Following that would give one process a new start time in every event.
_CLOCK_WAS_SET_NS = 1_000_000
_COMPLAINT_EVERY_NS = 60_000_000_000


class Pipeline:
    """Decodes records, sends what is not the self-test's to every sink, and counts what is lost."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        node: str,
        observe_delay: Callable[[float], None],
        attribute: Attribute = nowhere,
        name_secret: NameSecret = nameless,
        read_clocks: Callable[[], Clocks] = Clocks.read,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Take the sinks and the world; `observe_delay` gets the seconds from the kernel to the sinks.

        `attribute` tells the pod and container of a cgroup and process, `name_secret` what a tree calls one
        of its secrets.
        """
        self.undecodable = 0
        self._sinks = tuple(sinks)
        self._node = node
        self._observe_delay = observe_delay
        self._attribute = attribute
        self._name_secret = name_secret
        self._read_clocks = read_clocks
        self._monotonic_ns = monotonic_ns
        self._clocks = read_clocks()
        self._sinks_failed = 0
        self._next_complaint_ns = 0

    @property
    def undelivered(self) -> int:
        """How many events a sink did not take."""
        return self._sinks_failed + sum(sink.dropped for sink in self._sinks)

    def feed(self, record: bytes) -> None:
        """Take one record of the ring buffer to its end."""
        try:
            event = decode(record)
        except DecodeError as error:
            self.undecodable += 1
            self._complain("a record of the ring buffer was skipped: %s (%d so far)", error, self.undecodable)
            return
        if not (isinstance(event, Attempt) and event.selftest):
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        self._follow_clocks()
        told = as_dict(
            event,
            node=self._node,
            clocks=self._clocks,
            attribute=self._attribute,
            name_secret=self._name_secret,
        )
        for sink in self._sinks:
            try:
                sink.emit(told)
            except Exception as error:  # noqa: BLE001 - a sink's mistake must not end the story
                self._sinks_failed += 1
                self._complain("a sink failed: %r (%d events undelivered so far)", error, self.undelivered)
        self._observe_delay(max(0, self._monotonic_ns() - event.ktime_ns) / 1e9)

    def _follow_clocks(self) -> None:
        clocks = self._read_clocks()
        moved_ns = abs(clocks.monotonic_offset_ns - self._clocks.monotonic_offset_ns)
        if moved_ns > _CLOCK_WAS_SET_NS:
            self._clocks = clocks

    def _complain(self, text: str, *values: object) -> None:
        now_ns = self._monotonic_ns()
        if now_ns >= self._next_complaint_ns:
            self._next_complaint_ns = now_ns + _COMPLAINT_EVERY_NS
            _log.warning(text, *values)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()
