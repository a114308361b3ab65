"""A process with a secret, and its descendants."""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.kernel.waiting import PATIENCE_S, LineReader, wait_until

_STOPPED = re.compile(r"^State:\s+[tT]", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where a process of a tree keeps the secret; `tid` is its second thread."""

    answer: str
    pid: int
    tid: int
    address: int
    scratch_address: int
    fd: int
    secret: str

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a line of victim.c."""
        return cls(**json.loads(line))


class Victim:
    """A running victim.c; `with` ends it and its descendants."""

    def __init__(self, command: Sequence[Path | str], execs: Path | None = None) -> None:
        self._scratch = tempfile.NamedTemporaryFile(prefix="ct-scratch-")  # noqa: SIM115 - closed in stop()
        self._scratch.truncate(4096)
        environment: Mapping[str, str] = {
            "PATH": os.environ["PATH"],
            "VICTIM_SECRET": os.urandom(16).hex(),
            "VICTIM_SCRATCH": self._scratch.name,
            **({"VICTIM_EXECS": str(execs)} if execs else {}),
        }
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
            process_group=0,
        )
        assert self.process.stdin
        assert self.process.stdout
        self._stdin = self.process.stdin
        self._lines = LineReader(self.process.stdout.fileno())
        self.where = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process that was started: the victim, unless it was started by another program."""
        return self.process.pid

    @property
    def scratch_file(self) -> str:
        """What it has mapped at its scratch address."""
        return self._scratch.name

    def ask(self, command: str) -> Whereabouts:
        """Have it do something and return the answer, which may come from a new descendant."""
        self._stdin.write(f"{command}\n".encode())
        return self._read()

    def end(self) -> int:
        """Have it exit, and return its code."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(b"exit\n")
        return self.process.wait(PATIENCE_S)

    def check(self) -> None:
        """Assert that it lives, answers, and that nothing holds any of its threads."""
        assert self.process.poll() is None, f"the victim ended with {self.process.returncode}"
        assert self.ask("ping").answer == "pong"
        wait_until(lambda: not any(map(_held, _statuses(self.pid))), "no thread is stopped or traced")

    def stop(self) -> None:
        """End it and every descendant, whatever state they are in, and reap them all."""
        if self._stdin.closed:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        # What is left of the group is ours by now, as this process is a subreaper.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitid(os.P_PGID, self.process.pid, os.WEXITED)
        self._stdin.close()
        assert self.process.stdout
        self.process.stdout.close()
        self._scratch.close()

    def _read(self) -> Whereabouts:
        line = self._lines.line()
        assert line, f"the victim ended with {self.process.wait(PATIENCE_S)}"
        return Whereabouts.parse(line)


def _statuses(pid: int) -> Iterator[str]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield (task / "status").read_text()


def _held(status: str) -> bool:
    return bool(_STOPPED.search(status)) or "TracerPid:\t0\n" not in status
