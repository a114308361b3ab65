"""Who is protected: a wrapper however it is started, everything that descends from it, and nobody else."""

from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.kernel.accounting import account
from tests.kernel.agent import PROGRAM, Agent
from tests.kernel.attacks import Attack
from tests.kernel.build import Programs
from tests.kernel.cases import Case
from tests.kernel.keeper import Keeper, agents
from tests.kernel.victim import Victim, Whereabouts
from tests.kernel.waiting import wait_until

pytestmark = agents("enforce")

TRIALS = 7
CASES = (Case(vector="process-vm-read"), Case(vector="proc-mem", way="mem"))


def _assert_guarded(
    agent: Agent, programs: Programs, victim: Victim, where: Whereabouts | None = None
) -> None:
    for case in CASES:
        attack = Attack(programs=programs, victim=victim, case=case, target=where, trials=TRIALS)
        seen = account(agent, attack)
        assert (seen.tally.leaked, seen.tally.killed) == (0, TRIALS)
        assert {event["target"]["pid"] for event in seen.events} == {(where or victim.where).pid}


def _assert_open(agent: Agent, programs: Programs, victim: Victim) -> None:
    for case in CASES:
        seen = account(agent, Attack(programs=programs, victim=victim, case=case, trials=TRIALS))
        assert (seen.tally.leaked, seen.tally.killed) == (TRIALS, 0)
        assert seen.counted == {}


@pytest.mark.parametrize("kin", ["fork", "exec", "vfork", "grandchild", "namespace"])
def test_descendants(agent: Agent, victim: Victim, programs: Programs, kin: str):
    """Every descendant is guarded from its first instruction, whatever program it becomes."""
    _assert_guarded(agent, programs, victim, victim.ask(kin))


def test_orphan(agent: Agent, keeper: Keeper, programs: Programs):
    """A descendant that outlives its wrapper stays guarded, and its end is the tree's."""
    assert keeper.mode
    with Victim([programs.wrapper()]) as victim:
        orphan = victim.ask("orphan")
        seen = len(agent.events)
        try:
            victim.end()
            _assert_guarded(agent, programs, victim, orphan)
            assert not [event for event in agent.events[seen:] if _is("tree-ends", victim.pid)(event)]
        finally:
            victim.stop()
        agent.wait_for(_is("tree-ends", victim.pid), since=seen)


def _is(kind: str, pid: int):
    return lambda event: event["type"] == kind and event["target"]["pid"] == pid


def test_unprotected_process(agent: Agent, programs: Programs):
    """A process that nothing names is open to everyone, and nothing is counted."""
    with Victim([programs.nobody()]) as stranger:
        _assert_open(agent, programs, stranger)


def test_wrapper_that_ran_before(agent: Agent, keeper: Keeper, programs: Programs):
    """A process named by pid is guarded though it was there before the agent, with its child."""
    _assert_guarded(agent, programs, keeper.early.victim)
    _assert_guarded(agent, programs, keeper.early.victim, keeper.early.child)


def test_wrapper_found_by_name(agent: Agent, keeper: Keeper, programs: Programs):
    """A wrapper that was there before the agent is found by its name."""
    _assert_guarded(agent, programs, keeper.early_by_name)


def _started_by_symlink(programs: Programs, directory: Path) -> list[Path | str]:
    link = directory / programs.wrapper().name
    link.symlink_to(programs.nobody())
    return [link]


def _started_as_script(programs: Programs, directory: Path) -> list[Path | str]:
    script = directory / programs.wrapper().name
    script.write_text(f"#!{programs.nobody()}\n", encoding="utf-8")
    script.chmod(0o755)
    return [script]


def _started_by_descriptor(programs: Programs, _: Path) -> list[Path | str]:
    code = "import os, sys; os.execve(os.open(sys.argv[1], os.O_RDONLY), ['x'], dict(os.environ))"
    return ["/usr/bin/python3", "-c", code, programs.wrapper()]


def _started_by_path(programs: Programs, _: Path) -> list[Path | str]:
    return [programs.by_path]


def _started_32_bit(programs: Programs, _: Path) -> list[Path | str]:
    return [programs.wrapper("32")]


@pytest.mark.parametrize(
    "start",
    [_started_by_symlink, _started_as_script, _started_by_descriptor, _started_by_path, _started_32_bit],
)
def test_wrapper_by_name(agent: Agent, programs: Programs, tmp_path: Path, start):
    """A wrapper is recognised at its exec by the name of its file or the name it was started by."""
    seen = len(agent.events)
    with Victim(start(programs, tmp_path)) as victim:
        agent.wait_for(_is("tree-begins", victim.where.pid), since=seen)
        _assert_guarded(agent, programs, victim)


def test_protect_command(agent: Agent, keeper: Keeper, programs: Programs):
    """`protect -- COMMAND` makes a wrapper of any command."""
    command: list[Path | str] = [PROGRAM, "protect", "--socket", str(keeper.socket), "--", programs.nobody()]
    with Victim(command) as victim:
        _assert_guarded(agent, programs, victim)


def _gauges(agent: Agent) -> list[float]:
    return [agent.gauge(name) for name in ("protected_processes", "protected_trees")]


def test_begin_and_end(agent: Agent, keeper: Keeper, programs: Programs):
    """A tree's beginning and end are told, and the gauges return to where they were."""
    before = [keeper.early_processes, keeper.early_trees]
    wait_until(lambda: _gauges(agent) == before, "earlier tests' wrappers are gone")
    seen = len(agent.events)
    with Victim([programs.wrapper()]) as victim:
        begins = agent.wait_for(_is("tree-begins", victim.pid), since=seen)
        victim.ask("fork")
        assert _gauges(agent) == [before[0] + 2, before[1] + 1]
        victim.end()
        victim.stop()
        ends = agent.wait_for(_is("tree-ends", victim.pid), since=seen)
    assert [event["target"]["tree"] for event in begins] == [event["target"]["tree"] for event in ends]
    wait_until(lambda: _gauges(agent) == before, "the gauges are back")


def test_container(agent: Agent, programs: Programs):
    """A wrapper that is pid 1 of a pid namespace is guarded against attackers outside and inside."""
    command: list[Path | str] = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        programs.wrapper(),
    ]
    with Victim(command) as victim:
        inner = victim.where
        assert inner.pid == 1
        pid = psutil.Process(victim.pid).children()[0].pid
        tid = max(thread.id for thread in psutil.Process(pid).threads())
        outer = Whereabouts(**{**_fields(inner), "pid": pid, "tid": tid})
        _assert_guarded(agent, programs, victim, outer)

        inside = ["nsenter", "--target", str(pid), "--pid", "--mount"]
        for case in CASES:
            attack = Attack(programs=programs, victim=victim, case=case, before=inside, trials=TRIALS)
            seen = account(agent, attack)
            assert (seen.tally.leaked, seen.tally.killed) == (0, TRIALS)
            assert {event["target"]["pid"] for event in seen.events} == {pid}


def _fields(where: Whereabouts) -> dict[str, Any]:
    return {name: getattr(where, name) for name in where.__slots__}


def test_reused_pid(agent: Agent, programs: Programs):
    """A stranger that gets the pid of a wrapper that has gone is a stranger."""
    with Victim([programs.wrapper()]) as victim:
        pid = victim.pid
        victim.end()
    with Victim([programs.reborn, str(pid), programs.nobody()]) as stranger:
        assert stranger.where.pid == pid
        _assert_open(agent, programs, stranger)
