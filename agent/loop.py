"""The agent's one loop: the ring buffer, the control socket, a signal, and what is done every second."""

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from agent.control import ControlServer
from agent.errors import LoadError
from agent.events import is_tree_end
from agent.kernel import Kernel
from agent.pipeline import Pipeline
from agent.protected import Protected

_log = logging.getLogger(__name__)

# How often the files that the configuration names are looked at again.
_REFRESH_SECONDS = 1.0
# How long nothing has been protected before the costly programs go: wrappers restart.
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


class CostlyPrograms:
    """Attached while something is protected and for a while after; a failure to attach is told, not fatal."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._rest_at = 0.0
        self._failed = False

    def follow(self, now: float) -> None:
        """Attach them if something is protected; detach them if nothing has been for a while."""
        if not self._kernel.protects():
            if now >= self._rest_at:
                self._kernel.rest()
            return
        self._rest_at = now + _REST_AFTER_SECONDS
        try:
            self._kernel.wake()
            self._failed = False
        except LoadError as err:
            if not self._failed:
                _log.error("%s: what it watches is open until it does", err)
            self._failed = True


def run(
    stop: socket.socket, kernel: Kernel, control: ControlServer, protected: Protected, pipeline: Pipeline
) -> None:
    """Tell what the kernel reports and answer on the control socket until `stop` is readable."""
    costly = CostlyPrograms(kernel)
    with selectors.DefaultSelector() as selector:
        selector.register(stop, selectors.EVENT_READ)
        selector.register(kernel, selectors.EVENT_READ)
        control.register(selector)
        refresh_at = time.monotonic()
        while True:
            records = kernel.drain()
            now = time.monotonic()
            # Before the records are told: who reads that a tree began may rely on all programs.
            costly.follow(now)
            take(records, feed=pipeline.feed, wrapper_gone=protected.wrapper_gone)
            if now >= refresh_at:
                protected.refresh()
                protected.announce_ends()
                refresh_at = now + _REFRESH_SECONDS
            for key, _ in selector.select(max(0.0, refresh_at - now)):
                if key.fileobj is stop:
                    return
                if key.data is not None:
                    key.data()


def take(
    records: Iterable[bytes], *, feed: Callable[[bytes], None], wrapper_gone: Callable[[bytes], None]
) -> None:
    """Take records of the ring buffer to where they belong."""
    for record in records:
        if is_tree_end(record):
            wrapper_gone(record)
        else:
            feed(record)
