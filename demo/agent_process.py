"""An agent of our own: its own port and socket, so that one which runs already does not matter.

bench/ starts its agents with this too.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from demo.lines import Line, Lines

ROOT = Path(__file__).resolve().parent.parent

# An emulated processor is 20 to 50 times slower; only a failure takes this long.
PATIENCE_S = 120.0
_READY = "ready: "
_STARTED = "started in "

Event = dict[str, Any]


class AgentProcessError(Exception):
    """The agent did not start, or ended; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a start went: when the process was made, what it logged until it was ready, and when that was."""

    began: float
    ready: float
    log: tuple[Line, ...]

    @property
    def seconds(self) -> float:
        """From making the process to its ready line."""
        return self.ready - self.began


def agent_command(*arguments: str) -> list[str]:
    """Return the command line of one of the agent's commands."""
    return [sys.executable, "-m", "agent", *arguments]


def environment() -> dict[str, str]:
    """Return this process's environment without what would configure an agent."""
    ours = ("CLOUDTASER_", "ENFORCE_MODE", "REACTIVE_KILL", "LOG_ALL", "NODE_NAME")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)}


def doctor(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what the agent's doctor says with these settings, by vector."""
    done = subprocess.run(
        agent_command("doctor", "--json", *settings),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode:
        raise AgentProcessError(_last_line(done.stderr.splitlines(), "doctor failed"))
    return {row["vector"]: row for row in json.loads(done.stdout)["vectors"]}


class AgentProcess:
    """A running agent; `with` stops it."""

    def __init__(self, *settings: str) -> None:
        """Start it; `start` waits until it protects."""
        self._folder = tempfile.TemporaryDirectory(prefix="cloudtaser-")
        self._own = ("--standalone", "--metrics-address", "127.0.0.1:0")
        socket_path = ("--socket-path", f"{self._folder.name}/agent.sock")
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            # The agent ends with us, even if we are killed. A session of its own keeps Ctrl-C from it:
            # it is stopped in order, after those who attack.
            ["setpriv", "--pdeathsig", "TERM", *agent_command("run", *self._own, *socket_path, *settings)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout
        assert self._process.stderr
        self._events = Lines(self._process.stdout)
        self._log = Lines(self._process.stderr)
        self.events: list[Event] = []

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    @property
    def pid(self) -> int:
        """Its process; setpriv has become the agent by the time that it is ready."""
        return self._process.pid

    def start(self) -> Start:
        """Wait until it is ready."""
        seen: list[Line] = []
        ready: float | None = None
        while line := self._log.next(PATIENCE_S):
            seen.append(line)
            if line.text.startswith(_READY):
                ready = line.at
            elif line.text.startswith(_STARTED) and ready is not None:
                return Start(began=self._began, ready=ready, log=tuple(seen))
        raise AgentProcessError(_last_line([line.text for line in seen], "the agent did not start"))

    def wait_for(self, wanted: Callable[[Event], bool], seconds: float) -> list[Event]:
        """Wait for an event, and return all that are there by then and wanted."""
        deadline = time.monotonic() + seconds
        while not any(map(wanted, self.events)) and (left := deadline - time.monotonic()) > 0:
            self._take(self._events.next(left))
            if self._events.ended:
                break
        self.take_events()
        return list(filter(wanted, self.events))

    def take_events(self) -> None:
        """Take what is there, without waiting."""
        while line := self._events.next(0):
            self._take(line)
        while self._log.next(0):
            pass  # read on, so that the agent never waits for us

    def _take(self, line: Line | None) -> None:
        if line:
            self.events.append(json.loads(line.text))

    def stop(self) -> None:
        """Ask it to stop, and wait until it has gone."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            # What it says while it stops must not fill the pipes.
            self._events.drain(PATIENCE_S)
            self._log.drain(PATIENCE_S)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._events.close()
        self._log.close()
        self._folder.cleanup()


def _last_line(lines: Sequence[str], otherwise: str) -> str:
    said = [line for line in lines if line.strip()]
    return said[-1] if said else otherwise
