"""`detect` stops nothing and misses nothing."""

import pytest

from agent.vectors import Mode
from tests.kernel.accounting import account
from tests.kernel.agent import Agent
from tests.kernel.attacks import Attack
from tests.kernel.build import Programs
from tests.kernel.cases import CASES, PLAIN, SHORT, Case
from tests.kernel.keeper import agents
from tests.kernel.matrix import Matrix
from tests.kernel.victim import Victim

# The pair's reader is an attempt of its own only where its opener was stopped.
DETECTED = [case for case in CASES if case.door != "shared-files" and (case.door == PLAIN or not SHORT)]


@agents("detect")
@pytest.mark.parametrize("case", DETECTED, ids=str)
def test_detect_sees(agent: Agent, victim: Victim, programs: Programs, matrix: Matrix, case: Case):
    """Every attempt works, and is counted and told once."""
    trials = min(case.trials, 10 if SHORT else 100)
    seen = account(agent, Attack(programs=programs, victim=victim, case=case, trials=trials))
    tally = seen.tally
    matrix.add(Mode.DETECT, case, tally, seen.counted)

    assert tally.leaked == trials
    assert (tally.killed, tally.denied, tally.other) == (0, 0, 0)
    assert seen.counted == {"detected": trials}
    assert seen.others == {}
    assert seen.told == trials


@agents("detect")
def test_flood_of_one_offender(agent: Agent, victim: Victim, programs: Programs):
    """One offender's flood is counted to the last attempt, while its events are limited."""
    attempts = 4999
    case = Case(vector="process-vm-read")
    seen = account(agent, Attack(programs=programs, victim=victim, case=case, trials=1, repeat=attempts))

    assert seen.tally.attempts == attempts
    assert seen.counted == {"detected": attempts}
    assert seen.lost["rate_limited"] > 0
    assert seen.told == attempts


@agents("detect")
def test_one_call_is_one_attempt(agent: Agent, victim: Victim, programs: Programs):
    """A call that reads many pages is one attempt, however often the kernel takes the target's locks."""
    case = Case(vector="process-vm-read")
    attack = Attack(programs=programs, victim=victim, case=case, trials=13, size=1 << 20)

    assert account(agent, attack).counted == {"detected": 13}


@agents("detect")
def test_flood_leaves_room_for_others(agent: Agent, victim: Victim, programs: Programs):
    """While the flood of one offender is limited, another one's attempts are all told."""
    case = Case(vector="process-vm-read")
    account(agent, Attack(programs=programs, victim=victim, case=case, trials=1, repeat=1009))
    seen = account(agent, Attack(programs=programs, victim=victim, case=case, trials=7))

    assert len(seen.events) == 7
