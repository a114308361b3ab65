"""The self-test with a canary that answers as it is told, and the real canary with nobody to protect it."""

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from agent.abi import MemberFlag
from agent.errors import AgentError
from agent.events import AttemptKey
from agent.selftest import Canary, Result, Trial, run
from agent.vectors import BY_ID, CATALOGUE, Layer, Outcome

GOT_THROUGH = {"killed": False, "errno": 0, "leaked": True}
KILLED = {"killed": True, "errno": 0, "leaked": False}
DENIED = {"killed": False, "errno": errno.EPERM, "leaked": False}
VICTIMS = [4711, 4712]


class Told(Canary):
    """A canary that answers what it is told, on a node which remembers everything."""

    def __init__(self, answer, *, counts=Outcome.DENIED):
        self.answer, self.counts = answer, counts
        self.happened: list[tuple[object, ...]] = []
        self.counted: Counter[AttemptKey] = Counter()

    def victims(self):
        return VICTIMS

    def attack(self, vector):
        self.happened.append(("attacked", vector.id))
        if self.counts is not None:
            self.counted[AttemptKey(vector=vector, layer=Layer.LSM, outcome=self.counts)] += 1
        return self.answer

    def run(self, *vectors):
        return run(
            self,
            protect=lambda pid, flags: self.happened.append(("protected", pid, flags)),
            forget=lambda pid: self.happened.append(("forgotten", pid)),
            attempts=lambda: dict(self.counted),
            vectors=[BY_ID[name] for name in vectors],
        )


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (KILLED, Result.KILLED),
        (DENIED, Result.DENIED),
        (DENIED | {"errno": errno.EACCES}, Result.DENIED),
        (DENIED | {"errno": errno.ESRCH}, Result.FAILED),
        (DENIED | {"errno": errno.ENOSYS}, Result.FAILED),
        (DENIED | {"errno": 0}, Result.FAILED),
        (GOT_THROUGH, Result.LEAKED),
        (KILLED | {"leaked": True}, Result.LEAKED),
        (DENIED | {"leaked": True}, Result.LEAKED),
    ],
)
@pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])
def test_an_attack_ends_as_the_canary_says(answer, result, counted):
    canary = Told(answer, counts=Outcome.DENIED if counted else None)

    trials = canary.run("proc-mem")

    assert trials == (Trial(vector=BY_ID["proc-mem"], result=result, counted=counted),)
    assert trials[0].held is (counted and result in {Result.KILLED, Result.DENIED})


def test_the_victims_are_protected_as_canaries_before_and_forgotten_after():
    canary = Told(KILLED)

    canary.run("proc-mem", "ptrace-attach")

    assert canary.happened == [
        ("protected", 4711, MemberFlag.CANARY),
        ("protected", 4712, MemberFlag.CANARY),
        ("attacked", "proc-mem"),
        ("attacked", "ptrace-attach"),
        ("forgotten", 4711),
        ("forgotten", 4712),
    ]


@pytest.mark.parametrize("outcome", Outcome)
def test_an_attempt_counts_whatever_the_hook_did(outcome):
    assert [trial.counted for trial in Told(DENIED, counts=outcome).run("proc-mem", "proc-maps")] == [
        True,
        True,
    ]


class Elsewhere(Told):
    def attack(self, _vector):
        return super().attack(BY_ID["proc-maps"])


def test_an_attempt_counts_for_its_own_vector_only():
    assert [trial.counted for trial in Elsewhere(KILLED).run("proc-mem", "proc-maps")] == [False, True]


def test_what_was_counted_before_proves_nothing():
    canary = Told(KILLED, counts=None)
    canary.counted[AttemptKey(vector=BY_ID["proc-mem"], layer=Layer.LSM, outcome=Outcome.KILLED)] = 7

    assert [trial.counted for trial in canary.run("proc-mem")] == [False]


class Breaking(Told):
    def attack(self, _vector):
        raise AgentError("the self-test's canary died with status 1")


def test_a_canary_that_breaks_is_an_error():
    with pytest.raises(AgentError, match=r"^the self-test's canary died with status 1$"):
        Breaking(KILLED).run("proc-mem")


def ends(pid):
    """Wait until there is no such process, or only what its parent has not noticed yet."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.005)
    return False


# An attack that fails by itself would look like an agent that holds.
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gets through every vector where nothing protects")
def test_without_an_agent_every_vector_leaks():
    with Canary() as canary:
        trials = run(canary, protect=lambda _pid, _flags: None, forget=lambda _pid: None, attempts=dict)

    assert {trial.vector.id: trial.result for trial in trials} == dict.fromkeys(BY_ID, Result.LEAKED)
    assert not any(trial.counted or trial.held for trial in trials)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gets through every vector where nothing protects")
def test_an_attack_can_be_made_again():
    again = [vector for vector in CATALOGUE if vector.id != "ptrace-traceme"]  # the volunteer is used up
    with Canary() as canary:
        canary.victims()
        answers = [canary.attack(vector) for vector in again * 3]

    assert answers == [GOT_THROUGH] * len(answers)


def test_the_canary_and_its_victims_end_with_its_owner():
    with Canary() as canary:
        pids = [canary._process.pid, *canary.victims()]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)

    assert [ends(pid) for pid in pids] == [True] * 3


def test_the_victims_end_with_a_canary_that_was_killed():
    with Canary() as canary:
        victim, volunteer = canary.victims()
        canary._process.kill()

        with pytest.raises(
            AgentError, match=f"^the self-test's canary died with status -{signal.SIGKILL:d}$"
        ):
            canary.attack(BY_ID["proc-maps"])

        assert ends(victim)
    assert ends(volunteer)
