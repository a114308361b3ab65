"""Waiting for another process without sleeping for a guessed time."""

import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

# Long enough for a machine without hardware virtualisation; only a failure takes this long.
PATIENCE_S = 30.0
_LOOK_S = 0.02

_Result = TypeVar("_Result")


def wait_until(look: Callable[[], _Result], what: str, patience_s: float = PATIENCE_S) -> _Result:
    """Return the first true result of `look`; for things that the kernel gives no way to wait for."""
    deadline = time.monotonic() + patience_s
    while not (result := look()):
        assert time.monotonic() < deadline, f"still not so after {patience_s} s: {what}"
        time.sleep(_LOOK_S)
    return result


class LineReader:
    """Reads lines from a pipe, never longer than the patience."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""

    def line(self, patience_s: float = PATIENCE_S) -> str:
        """Return the next line, or "" at the end."""
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"no line after {patience_s} s"
            if not select.select([self._descriptor], [], [], left_s)[0]:
                continue
            if not (data := os.read(self._descriptor, 65536)):
                return ""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")
