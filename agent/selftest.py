"""Attacks a canary of our own through each vector, and says what held.

The only proof that a layer works is an attack that fails: a program may load, attach, and never be called.
"""

import errno
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Self

from agent.abi import MemberFlag
from agent.errors import AgentError
from agent.events import AttemptKey
from agent.vectors import CATALOGUE, Vector

# What one attack may take; under emulation with a busy processor a fork and exec takes seconds.
_ANSWER_SECONDS = 30.0
_REFUSALS = frozenset({errno.EPERM, errno.EACCES})


class Result(Enum):
    """How an attack on the canary ended."""

    KILLED = "killed"
    DENIED = "denied"
    LEAKED = "leaked"
    FAILED = "failed"  # the attack did not work for reasons of its own: nothing is proved


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One vector's attack: how it ended and whether the kernel counted it."""

    vector: Vector
    result: Result
    counted: bool

    @property
    def held(self) -> bool:
        """Whether the attacker got nothing and the attempt was seen."""
        return self.result in (Result.KILLED, Result.DENIED) and self.counted


class Canary:
    """The process that attacks and is attacked. Started early, it is there when the programs are."""

    def __init__(self) -> None:
        """Start it; it runs alone until `victims` asks for it."""
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "agent.canary"],
                env={"CLOUDTASER_CANARY": secrets.token_hex()},  # what proc-environ is after
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
            )
        self._channel.settimeout(_ANSWER_SECONDS)
        self._answers = self._channel.makefile("rb")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it and its victims."""
        self._answers.close()
        self._channel.close()
        try:
            self._process.wait(_ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def victims(self) -> list[int]:
        """Return the pids of the processes that are attacked."""
        return list(self._answer()["victims"])

    def attack(self, vector: Vector) -> dict[str, Any]:
        """Let the canary be attacked through `vector`."""
        try:
            self._channel.sendall(vector.id.encode() + b"\n")
        except OSError as err:
            raise self._death() from err
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.readline()
        except TimeoutError as err:
            raise AgentError(f"the self-test's canary did not answer within {_ANSWER_SECONDS:.0f} s") from err
        except OSError as err:  # it went with a request unread
            raise self._death() from err
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> AgentError:
        return AgentError(f"the self-test's canary died with status {self._process.wait(_ANSWER_SECONDS)}")


def run(
    canary: Canary,
    *,
    protect: Callable[[int, int], object],
    forget: Callable[[int], None],
    attempts: Callable[[], Mapping[AttemptKey, int]],
    vectors: Iterable[Vector] = CATALOGUE,
) -> tuple[Trial, ...]:
    """Attack through each of `vectors` and return the trials.

    `protect` takes a pid and member flags; `attempts` returns the self-test's counters.

    Raises:
        AgentError: the canary does not work on this node.

    """
    victims = canary.victims()
    for pid in victims:
        protect(pid, MemberFlag.CANARY)
    trials = []
    before = _by_vector(attempts())
    for vector in vectors:
        answer = canary.attack(vector)
        after = _by_vector(attempts())
        counted = after[vector.id] > before[vector.id]
        trials.append(Trial(vector=vector, result=_result(answer), counted=counted))
        before = after
    for pid in victims:
        forget(pid)
    return tuple(trials)


def _by_vector(attempts: Mapping[AttemptKey, int]) -> dict[str, int]:
    totals: dict[str, int] = {vector.id: 0 for vector in CATALOGUE}
    for key, count in attempts.items():
        totals[key.vector.id] += count
    return totals


def _result(answer: Mapping[str, Any]) -> Result:
    if answer["leaked"]:
        return Result.LEAKED
    if answer["killed"]:
        return Result.KILLED
    return Result.DENIED if answer["errno"] in _REFUSALS else Result.FAILED
