"""Running other people's programs."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.waiting import PATIENCE_S

# gdb reads a static program's symbols, and a virtual machine is slow.
_TIMEOUT_S = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A program that has ended; `code` is negative for a signal."""

    code: int
    output: bytes


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> Ran:
    """Run a program to its end; what it says on either stream is its output."""
    done = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_TIMEOUT_S,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", "DEBUGINFOD_URLS": "", **(environment or {})},
    )
    return Ran(code=done.returncode, output=done.stdout)


def run_in_terminal(command: Sequence[str], keys: bytes) -> Ran:
    """Run a program in a terminal of its own, and press `keys` as soon as it has drawn something."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "LINES": "40", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    drawn = b""
    deadline = time.monotonic() + PATIENCE_S
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                drawn += _read(ours)
                os.write(ours, keys)
        return Ran(code=process.wait(PATIENCE_S), output=drawn)
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        os.close(ours)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: nobody has it open any more
        return b""
