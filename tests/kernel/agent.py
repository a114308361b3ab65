"""The agent under test: a process, its events, its metrics."""

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

from tests.kernel.cases import LAYER
from tests.kernel.waiting import PATIENCE_S

PROGRAM = Path(sys.executable).parent / "cloudtaser-ebpf"
# The compiler and, with Kubernetes, its client are slow where everything is.
START_S = 4 * PATIENCE_S
_READY = re.compile(r"ready: metrics on (http://\S+)")

Event = dict[str, Any]


def command(*arguments: str) -> list[str]:
    """Return the command line of an agent on the layer under test."""
    return [str(PROGRAM), "run", "--standalone", "--layer", LAYER.name.lower(), *arguments]


def environment() -> dict[str, str]:
    """Return this process's environment without what would configure an agent."""
    ours = ("CLOUDTASER_", "ENFORCE_MODE", "REACTIVE_KILL", "LOG_ALL", "NODE_NAME")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The counters at one moment, or what two moments differ by."""

    outcomes: Counter[tuple[str, str]]  # by vector and outcome
    lost: Counter[str]  # by reason

    def since(self, earlier: Self) -> Self:
        """Return what was counted since then."""
        return type(self)(outcomes=self.outcomes - earlier.outcomes, lost=self.lost - earlier.lost)

    def of(self, vector: str) -> dict[str, int]:
        """Return what came of the attempts through one vector."""
        return {outcome: count for (each, outcome), count in self.outcomes.items() if each == vector}


class Agent:
    """A running agent; `with` stops it."""

    def __init__(self, *arguments: str) -> None:
        self.events: list[Event] = []
        self.diagnostics: list[str] = []
        self._changed = threading.Condition()
        self._url: str | None = None
        self.process = subprocess.Popen(
            command("--metrics-address", "127.0.0.1:0", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self.process.stdout
        # The agent drops events rather than wait for a slow reader; what is tested here is not this one.
        fcntl.fcntl(self.process.stdout, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._take_event)),
            threading.Thread(target=self._read, args=(self.process.stderr, self._take_diagnostic)),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The agent's process."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def wait_ready(self) -> Self:
        """Wait until it says that it protects."""
        self._wait(lambda: self._url is not None, "ready", START_S)
        return self

    def wait_for(self, predicate: Callable[[Event], bool], count: int = 1, since: int = 0) -> list[Event]:
        """Wait for `count` events that the predicate accepts, of those after `since`, and return them."""
        matching: list[Event] = []
        looked_at = since

        def enough() -> bool:
            nonlocal looked_at
            fresh = self.events[looked_at:]
            looked_at += len(fresh)
            matching.extend(filter(predicate, fresh))
            return len(matching) >= count

        self._wait(enough, f"{count} events")
        return matching

    def counts(self) -> Counts:
        """Read the counters now."""
        outcomes: Counter[tuple[str, str]] = Counter()
        lost: Counter[str] = Counter()
        for name, labels, value in self._samples():
            if name == "cloudtaser_ebpf_events_total":
                outcomes[labels["vector"], labels["outcome"]] += int(value)
            elif name == "cloudtaser_ebpf_events_lost_total":
                lost[labels["reason"]] += int(value)
        return Counts(outcomes=outcomes, lost=lost)

    def gauge(self, name: str) -> float:
        """Read one gauge now."""
        return next(value for each, _, value in self._samples() if each == f"cloudtaser_ebpf_{name}")

    def get(self, path: str) -> tuple[int, str]:
        """Fetch a page of its HTTP server: status and text."""
        assert self._url
        try:
            with urllib.request.urlopen(self._url + path, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def stop(self) -> int:
        """Ask it to stop, and return its exit code."""
        self.process.terminate()
        return self._finish()

    def kill(self) -> None:
        """End it without asking."""
        if self.alive:
            self.process.kill()
        self._finish()

    def _finish(self) -> int:
        code = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()
        return code

    def _samples(self) -> list[tuple[str, dict[str, str], float]]:
        _, text = self.get("/metrics")
        return [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def _read(self, stream: Any, take: Callable[[str], None]) -> None:
        for line in stream:
            with self._changed:
                take(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _take_event(self, line: str) -> None:
        self.events.append(json.loads(line))

    def _take_diagnostic(self, line: str) -> None:
        self.diagnostics.append(line)
        if found := _READY.search(line):
            self._url = found[1]

    def _wait(self, so: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        with self._changed:
            while not so():
                told = "\n".join(self.diagnostics[-20:])
                assert self.alive, f"the agent ended with {self.process.returncode} before {what}:\n{told}"
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"waited {patience_s} s for {what}:\n{told}"
                self._changed.wait(min(left_s, 1.0))


def protecting(programs_flags: Sequence[str]) -> Agent:
    """Start an agent and wait until it is ready; it is gone if it never is."""
    agent = Agent(*programs_flags)
    try:
        return agent.wait_ready()
    except BaseException:
        agent.kill()
        raise
