"""Lines from a pipe, each with the time that it came; never waiting longer than told."""

import os
import select
import time
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line without its end, and when it was read (time.monotonic)."""

    text: str
    at: float


class Lines:
    """Reads one pipe; nobody else may."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Read `stream`, which may have nothing in a buffer yet."""
        self._stream = stream
        self._pending = b""
        self.ended = False

    def next(self, seconds: float) -> Line | None:
        """Return the next line, or None when there is none in time or will be none any more."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending and self._read(max(0.0, deadline - time.monotonic())):
            pass
        if b"\n" not in self._pending:
            return None
        text, _, self._pending = self._pending.partition(b"\n")
        return Line(text=text.decode(errors="replace"), at=time.monotonic())

    def drain(self, seconds: float) -> None:
        """Read to the end and forget it."""
        deadline = time.monotonic() + seconds
        while self._read(max(0.0, deadline - time.monotonic())):
            self._pending = b""

    def close(self) -> None:
        """Stop reading."""
        self._stream.close()

    def _read(self, seconds: float) -> bool:
        if self.ended or not select.select([self._stream], [], [], seconds)[0]:
            return False
        data = os.read(self._stream.fileno(), 1 << 16)
        self.ended = not data
        self._pending += data
        return not self.ended
