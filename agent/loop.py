"""The agent's one loop: the ring buffer, a signal, whatever else is to be read, and the turn of a second."""

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from agent.abi import Kind
from agent.errors import LoadError
from agent.events import kind_of
from agent.hooks import While
from agent.kernel import Kernel

_log = logging.getLogger(__name__)

_SECOND = 1.0
# How long nothing has been protected before its programs go: wrappers restart.
_REST_AFTER_SECONDS = 10.0


@contextmanager
def stop_signals() -> Iterator[socket.socket]:
    """Yield a socket that becomes readable with SIGTERM or SIGINT; the handlers themselves do nothing."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003 - socket's own signature
    ours.setblocking(False)  # noqa: FBT003
    previous_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ours
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        ours.close()
        theirs.close()


class OnDemand:
    """Programs that are attached while they are wanted and for a while after.

    A failure to attach is told, not fatal.
    """

    def __init__(self, kernel: Kernel, demand: While, wanted: Callable[[], bool]) -> None:
        """Take the demand, and what says whether it is there."""
        self._kernel = kernel
        self._demand = demand
        self._wanted = wanted
        self._rest_at = 0.0
        self._failed = False

    def follow(self, now: float) -> None:
        """Attach them if they are wanted; detach them if they have not been for a while."""
        if not self._wanted():
            if now >= self._rest_at:
                self._kernel.rest(self._demand)
            return
        self._rest_at = now + _REST_AFTER_SECONDS
        try:
            self._kernel.wake(self._demand)
            self._failed = False
        except LoadError as err:
            if not self._failed:
                _log.error("%s: what it watches is open until it does", err)
            self._failed = True


class Reader(Protocol):
    """Something that is read when its descriptor is readable."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...

    def handle(self) -> None:
        """Do what can be done now without waiting."""
        ...


def run(
    stop: socket.socket,
    kernel: Kernel,
    *,
    take: Callable[[Iterable[bytes]], None],
    readers: Iterable[Reader],
    every_second: Callable[[], None],
    demands: Iterable[OnDemand] = (),
) -> None:
    """Take what the kernel reports and what `readers` have to read, until `stop` is readable."""
    programs = (OnDemand(kernel, While.PROTECTING, kernel.protects), *demands)
    with selectors.DefaultSelector() as selector:
        selector.register(stop, selectors.EVENT_READ)
        selector.register(kernel, selectors.EVENT_READ)
        for reader in readers:
            selector.register(reader, selectors.EVENT_READ, reader.handle)
        next_second = time.monotonic()
        while True:
            records = kernel.drain()
            now = time.monotonic()
            # Before the records are told: who reads that a tree began may rely on all programs.
            for each in programs:
                each.follow(now)
            take(records)
            if now >= next_second:
                every_second()
                next_second = now + _SECOND
            for key, _ in selector.select(max(0.0, next_second - time.monotonic())):
                if key.fileobj is stop:
                    return
                if key.data is not None:
                    key.data()


# What is done with a kind of record; it returns whether the record is to be told, too.
Handlers = Mapping[Kind, Callable[[bytes], bool]]


def take(records: Iterable[bytes], *, feed: Callable[[bytes], None], handlers: Handlers) -> None:
    """Take records of the ring buffer to where they belong."""
    for record in records:
        kind = kind_of(record)
        handler = handlers.get(kind) if kind is not None else None
        if handler is None or handler(record):
            feed(record)
