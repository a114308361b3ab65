"""What two programs watch is stopped by either of them: the kernel may skip one.

It skips a program for a task that comes by while another was preempted in the middle of it on the same
processor. That cannot be brought about at will, so here one of the two is not there at all.
"""

from dataclasses import replace

import pytest

from agent import config as configuration
from agent.armed import Armed, armed, survey
from agent.hooks import FOLLOW_TREES
from agent.vectors import Layer, Outcome
from tests.kernel.attacks import Attack
from tests.kernel.build import WRAPPER_NAME, Programs
from tests.kernel.cases import HAS_SECOND_LINE, LAYER, Case
from tests.kernel.keeper import Keeper, agents
from tests.kernel.victim import Victim

_MEMORY = [("process-vm-read", ""), ("proc-mem", "mem")] if HAS_SECOND_LINE else []
_ALONE = [
    *(
        (program, vector, way)
        for program in ("remote_memory", "remote_memory_again")
        for vector, way in _MEMORY
    ),
    *(
        (function, vector, way)
        for first, vector, way in (
            ("fmod_ptrace_access", "process-vm-read", ""),
            ("fmod_ptrace_traceme", "ptrace-traceme", "self"),
            ("fmod_file_open", "proc-environ", "environ"),
        )
        for function in (first, f"{first}_again")
        if LAYER is Layer.FMOD_RET
    ),
]
_TRIALS = 20


def _counted(programs: Armed) -> dict[tuple[str, str], int]:
    attempts = programs.kernel.attempts()
    return {(key.vector.id, key.outcome.name): count for key, count in attempts.items() if count}


if _ALONE:  # 5.10 has one program for each on lsm, which is never skipped

    @agents("off")
    @pytest.mark.parametrize(("program", "vector", "way"), _ALONE)
    def test_either_stops_alone(keeper: Keeper, programs: Programs, program: str, vector: str, way: str):
        """Nothing leaks and each attempt is counted once, by the one program that is there."""
        assert keeper.mode is None
        config = configuration.load({"protect_exe": (WRAPPER_NAME,), "layer": LAYER.name.lower()}, {}, "node")
        whose_inode = ("fmod_task_to_inode",) if "file_open" in program else ()
        plan = replace(survey(config), required=(*FOLLOW_TREES, *whose_inode, program), optional=())
        case = Case(vector=vector, way=way)
        with armed(config, plan) as running, Victim([programs.wrapper()]) as victim:
            tally = Attack(programs=programs, victim=victim, case=case, trials=_TRIALS).run()
            counted = _counted(running)

        assert (tally.leaked, tally.other) == (0, 0)
        assert tally.killed + tally.denied == _TRIALS
        outcome = Outcome.KILLED if tally.killed else Outcome.DENIED
        assert counted == {(vector, outcome.name): _TRIALS}
