"""Where events go.

A sink never raises and never waits long: what it cannot take is dropped and counted, since an agent that
hangs on a reader who sleeps would stop neither attackers nor itself.
"""

import json
import os
import select
from collections.abc import Mapping
from typing import Any, Protocol

# How long a full pipe may hold up the loop, once; then events are dropped until it drains.
_PATIENCE_MS = 100


class Sink(Protocol):
    """Takes events in the schema of `agent.events.as_dict`."""

    @property
    def dropped(self) -> int:
        """How many events could not be delivered."""
        ...

    def emit(self, event: Mapping[str, Any]) -> None:
        """Deliver one event, or count it as dropped."""
        ...

    def close(self) -> None:
        """Flush and let go of what the sink owns."""
        ...


class HasFileno(Protocol):
    """An open file, such as `sys.stdout`."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


class JsonLines:
    """Writes one JSON object a line, past Python's buffers, so that nothing is left to flush.

    A line is shorter than PIPE_BUF (4096 bytes): a pipe that polls as writable takes it whole. Everything
    outside ASCII is escaped, so that a process's name cannot steer the terminal that shows it.
    """

    def __init__(self, stream: HasFileno) -> None:
        self.dropped = 0
        self._fd = stream.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._patience_ms = _PATIENCE_MS
        self._torn = b""

    def emit(self, event: Mapping[str, Any]) -> None:
        """Write one line, or count it as dropped: nobody reads, the pipe is full, the disk is full."""
        line = self._torn + json.dumps(event, separators=(",", ":")).encode() + b"\n"
        if not self._poll.poll(self._patience_ms):
            self._patience_ms = 0
            self.dropped += 1
            return
        self._patience_ms = _PATIENCE_MS
        rest = line
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            self.dropped += 1
        if not rest:
            self._torn = b""
        elif len(rest) < len(line):  # after half a line the next begins on one of its own
            self._torn = b"\n"

    def close(self) -> None:
        """Leave the stream to its owner."""


class Memory:
    """Keeps events in a list, for tests and for a look back."""

    def __init__(self) -> None:
        self.dropped = 0
        self.events: list[Mapping[str, Any]] = []
        self.closed = False

    def emit(self, event: Mapping[str, Any]) -> None:
        """Keep one event."""
        self.events.append(event)

    def close(self) -> None:
        """Remember that nothing more will come."""
        self.closed = True
