"""Nothing gets out: every vector, both ABIs, every door, and the attacks are real."""

import pytest

from agent.vectors import Mode
from tests.kernel.accounting import Account, account
from tests.kernel.agent import Agent
from tests.kernel.attacks import Attack
from tests.kernel.build import Programs
from tests.kernel.cases import ALL_CASES, CASES, HAS_SECOND_LINE, HOLES, Case
from tests.kernel.keeper import Keeper, agents
from tests.kernel.matrix import Matrix
from tests.kernel.victim import Victim

# What a mode stops on this layer. A tracepoint cannot deny, so what `enforce` denies is tried under
# `strict`, which kills, on every layer.
STOPPED = {mode: [case for case in CASES if case.outcome(mode) != "detected"] for mode in Mode}
ONLY_STRICT = [case for case in CASES if case.action(Mode.ENFORCE) != case.action(Mode.STRICT)]


def _assert_stopped(agent: Agent, attack: Attack, mode: Mode, matrix: Matrix) -> None:
    seen = account(agent, attack)
    tally = seen.tally
    matrix.add(mode, attack.case, tally, seen.counted)

    assert tally.leaked == 0
    assert tally.other == 0, (tally.last_status, tally.last_error)
    assert (tally.killed or tally.denied) == tally.attempts
    _assert_accounted(seen, attack.case, mode)
    attack.victim.check()


def _assert_accounted(seen: Account, case: Case, mode: Mode) -> None:
    attempts, counted = seen.tally.attempts, sum(seen.counted.values())

    assert set(seen.counted) == {case.outcome(mode)}
    assert attempts <= counted <= attempts * case.readers
    assert seen.others == {}
    assert seen.told == counted, seen.lost
    # None where the kernel has no way to tell a program which call it is in (before 5.15).
    assert {event["detail"]["abi"] for event in seen.events} <= {case.abi, None}


@agents("enforce")
@pytest.mark.parametrize("case", STOPPED[Mode.ENFORCE], ids=str)
def test_enforce_stops(agent: Agent, victim: Victim, programs: Programs, matrix: Matrix, case: Case):
    """Under `enforce` no attempt succeeds and each is counted and told."""
    _assert_stopped(agent, Attack(programs=programs, victim=victim, case=case), Mode.ENFORCE, matrix)


@agents("strict")
@pytest.mark.parametrize("case", ONLY_STRICT, ids=str)
def test_strict_stops(agent: Agent, victim: Victim, programs: Programs, matrix: Matrix, case: Case):
    """Under `strict` what `enforce` denies is killed, and nothing gets out on any layer."""
    _assert_stopped(agent, Attack(programs=programs, victim=victim, case=case), Mode.STRICT, matrix)


@agents("enforce")
@pytest.mark.parametrize("abi", ["64", "32"])
def test_inherited_descriptor(agent: Agent, keeper: Keeper, programs: Programs, matrix: Matrix, abi: str):
    """A descriptor of a process's memory that was opened before it was protected gives nothing any more."""
    case = Case(vector="proc-mem", way="mem", abi=abi, door="inherited")
    early = keeper.early
    attack = Attack(programs=programs, victim=early.victim, case=case, inherited=early.memory)
    if HAS_SECOND_LINE:
        _assert_stopped(agent, attack, Mode.ENFORCE, matrix)
    else:
        _measure(agent, attack, Mode.ENFORCE, matrix)


def _measure(agent: Agent, attack: Attack, mode: Mode, matrix: Matrix) -> Account:
    seen = account(agent, attack)
    matrix.add(mode, attack.case, seen.tally, seen.counted)
    attack.victim.check()
    return seen


if HOLES:

    @agents("strict")
    @pytest.mark.parametrize("case", HOLES, ids=str)
    def test_known_hole(agent: Agent, victim: Victim, programs: Programs, matrix: Matrix, case: Case):
        """What a layer is known not to stop is measured, and the wrapper survives it; see `cases.is_hole`."""
        seen = _measure(agent, Attack(programs=programs, victim=victim, case=case), Mode.STRICT, matrix)

        assert case.door == "io-uring" or seen.counted["killed"] >= case.trials


@agents("off")
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_attack_is_real(keeper: Keeper, victim: Victim, programs: Programs, case: Case):
    """With no agent every attempt gets what it is after, so a zero elsewhere means something."""
    assert keeper.mode is None
    tally = Attack(programs=programs, victim=victim, case=case, trials=5).run()

    assert tally.leaked == 5
    assert (tally.killed, tally.denied, tally.other) == (0, 0, 0)
