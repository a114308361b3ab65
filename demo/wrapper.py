"""Builds the sample wrapper and keeps one running."""

import contextlib
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Self

from demo.lines import Lines

# By this name the agent recognises a wrapper at its exec, if it is told nothing else.
NAME = "cloudtaser-wrapper"
# The same program under a name that no agent knows, for the run without one.
UNKNOWN_NAME = "demo-wrapper"

_SOURCE = Path(__file__).with_name("wrapper.c")
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static")
_ANSWER_S = 30.0  # it answers at once unless something has stopped it


class WrapperError(Exception):
    """The wrapper cannot be used; the message is one line."""


def build(folder: Path, name: str) -> Path:
    """Compile it under this name."""
    program = folder / name
    subprocess.run(["gcc", *_FLAGS, "-o", program, _SOURCE], check=True, timeout=120)
    return program


class Wrapper:
    """A running wrapper with a secret of its own; `with` ends it."""

    def __init__(self, program: Path) -> None:
        """Start it and learn where it keeps the secret."""
        self.secret = secrets.token_hex(16)
        self._process = subprocess.Popen(
            [program],
            env={"DEMO_SECRET": self.secret},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the demo, which ends it in order
        )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin = self._process.stdin
        self._answers = Lines(self._process.stdout)
        first = self._answers.next(_ANSWER_S)
        if first is None:
            self.__exit__()
            raise WrapperError("the sample wrapper did not start")
        self.address = int(first.text)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._answers.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def use_secret(self) -> bool:
        """Have it hand the secret to its backend; whether it lives and did so."""
        return self._ask(b"use\n")

    def answers(self) -> bool:
        """Return whether it still runs, neither dead nor stopped."""
        return self._ask(b"ping\n")

    def _ask(self, command: bytes) -> bool:
        try:
            self._stdin.write(command)
            self._stdin.flush()
        except BrokenPipeError:
            return False
        return self._answers.next(_ANSWER_S) is not None
