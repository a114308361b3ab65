"""The benchmark's C programs: built, and kept running where they have to be."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from demo.lines import Lines

# What the agent is told to protect. Nothing else on any machine is called like this.
WARD = "ct-bench-ward"
# The same program, unknown to the agent; as long, so that its command line is.
STRANGER = "ct-bench-none"

_SOURCES = Path(__file__).parent
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static")
_BUILD_S = 120
# A round lasts milliseconds; an emulated processor is slow and a shared one busy.
_ANSWER_S = 300.0


class ProgramError(Exception):
    """One of the programs ended or did not answer; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Where the programs are."""

    calls: Path
    nothing: Path
    ward: Path
    stranger: Path


def build(folder: Path) -> Programs:
    """Compile all of them into `folder`."""
    for name, source in (("calls", "calls"), ("nothing", "nothing"), (WARD, "ward"), (STRANGER, "ward")):
        command = ["gcc", *_FLAGS, "-o", str(folder / name), str(_SOURCES / f"{source}.c")]
        subprocess.run(command, check=True, timeout=_BUILD_S)
    return built(folder)


def built(folder: Path) -> Programs:
    """Return the programs of a folder that they have been built into."""
    return Programs(
        calls=folder / "calls",
        nothing=folder / "nothing",
        ward=folder / WARD,
        stranger=folder / STRANGER,
    )


class Running:
    """A program that is talked to by lines; `with` ends it."""

    def __init__(self, command: Sequence[Path | str]) -> None:
        """Start it; it ends when its input does, and so when we do."""
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin = self._process.stdin
        self._answers = Lines(self._process.stdout)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._answers.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def line(self) -> str:
        """Wait for its next line."""
        line = self._answers.next(_ANSWER_S)
        if line is None:
            raise ProgramError(f"{self._process.args!r} ended or did not answer")
        return line.text

    def ask(self, line: str) -> str:
        """Send a line and wait for the answer."""
        self._stdin.write(f"{line}\n".encode())
        self._stdin.flush()
        return self.line()
