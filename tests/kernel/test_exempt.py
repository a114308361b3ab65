"""Exempt is a file, by device and inode: never a name, and never for longer than it is executed."""

import os
import shutil
from pathlib import Path

import pytest

from tests.kernel.accounting import account
from tests.kernel.agent import Agent
from tests.kernel.attacks import Attack
from tests.kernel.build import Programs
from tests.kernel.cases import HAS_SECOND_LINE, Case
from tests.kernel.keeper import agents
from tests.kernel.victim import Victim

pytestmark = agents("enforce")

TRIALS = 11
VECTORS = (
    Case(vector="process-vm-read"),
    Case(vector="proc-mem", way="mem"),
    Case(vector="ptrace-attach", way="seize"),
    Case(vector="pidfd-getfd"),
)


def _works(agent: Agent, attack: Attack) -> None:
    seen = account(agent, attack)

    assert (seen.tally.leaked, seen.tally.killed) == (TRIALS, 0)
    assert (seen.counted, seen.events) == ({}, [])


def _stopped(agent: Agent, attack: Attack) -> None:
    seen = account(agent, attack)

    assert (seen.tally.leaked, seen.tally.killed) == (0, TRIALS)
    assert seen.counted == {"killed": TRIALS}


@pytest.mark.parametrize("case", VECTORS, ids=str)
def test_exempt_file(agent: Agent, victim: Victim, programs: Programs, case: Case):
    """An exempt executable may do everything, and nothing is counted."""
    program = programs.exempt("attack")
    _works(agent, Attack(programs=programs, victim=victim, case=case, program=program, trials=TRIALS))


def test_hard_link_is_the_same_file(agent: Agent, victim: Victim, programs: Programs, tmp_path: Path):
    """Another name of the same file is exempt too."""
    link = tmp_path / "another-name"
    os.link(programs.exempt("attack"), link)
    _works(agent, Attack(programs=programs, victim=victim, case=VECTORS[0], program=link, trials=TRIALS))


def test_copy_is_another_file(agent: Agent, victim: Victim, programs: Programs, tmp_path: Path):
    """A copy is not exempt, whatever it is called and whatever is in it."""
    (tmp_path / "exempt").mkdir()
    copy = tmp_path / "exempt" / "attack"
    shutil.copy(programs.exempt("attack"), copy)
    _stopped(agent, Attack(programs=programs, victim=victim, case=VECTORS[0], program=copy, trials=TRIALS))


def test_lost_by_exec(agent: Agent, victim: Victim, programs: Programs):
    """An exempt program that becomes another one is exempt no more."""
    before = [programs.exempt("env")]
    _stopped(agent, Attack(programs=programs, victim=victim, case=VECTORS[0], before=before, trials=TRIALS))


def test_gained_by_exec(agent: Agent, victim: Victim, programs: Programs):
    """Any program that becomes an exempt one is exempt from then on."""
    attack = Attack(
        programs=programs,
        victim=victim,
        case=VECTORS[0],
        before=["/usr/bin/env"],
        program=programs.exempt("attack"),
        trials=TRIALS,
    )
    _works(agent, attack)


if HAS_SECOND_LINE:

    @pytest.mark.parametrize("abi", ["64", "32"])
    def test_descriptor_left_behind(agent: Agent, victim: Victim, programs: Programs, abi: str):
        """A descriptor that an exempt program opened and left to another gives that one nothing."""
        shell: list[Path | str] = [
            programs.exempt("sh"),
            "-c",
            f'exec 9</proc/{victim.pid}/mem; exec "$@"',
            "sh",
        ]
        case = Case(vector="proc-mem", way="mem", abi=abi, door="inherited")
        attack = Attack(programs=programs, victim=victim, case=case, before=shell, trials=TRIALS, inherited=9)
        _stopped(agent, attack)
