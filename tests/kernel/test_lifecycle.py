"""Start and stop: nothing stays in the kernel, whatever ends the agent."""

import signal
import time
from pathlib import Path

import pytest

from tests.kernel.agent import Agent, protecting
from tests.kernel.attacks import Attack
from tests.kernel.build import WRAPPER_NAME, Programs
from tests.kernel.cases import Case
from tests.kernel.keeper import agents
from tests.kernel.kernel_objects import KernelObject, all_objects, objects_of
from tests.kernel.victim import Victim
from tests.kernel.waiting import wait_until

pytestmark = agents("off")

_CASE = Case(vector="process-vm-read")


@pytest.fixture
def running(keeper, tmp_path: Path):
    """An agent of the test's own, which it may break."""
    assert keeper.mode is None
    with protecting(["--socket", str(tmp_path / "agent.sock"), "--protect-exe", WRAPPER_NAME]) as agent:
        yield agent


def _assert_gone(objects: set[KernelObject]) -> None:
    assert objects
    wait_until(lambda: not objects & all_objects(), f"the kernel has freed all of {objects}")


def _attack(programs: Programs, victim: Victim):
    return Attack(programs=programs, victim=victim, case=_CASE, trials=3).run()


@pytest.mark.own_agent
def test_names(running: Agent):
    """Every program and map can be found by its name, and each program has a link."""
    objects = objects_of(running.pid)
    names = {each.name for each in objects if each.kind != "link"}

    assert names
    assert {name for name in names if not str(name).startswith("cloudtaser_")} == set()
    assert sum(each.kind == "link" for each in objects) >= sum(each.kind == "prog" for each in objects)


def test_sigterm(running: Agent, programs: Programs):
    """SIGTERM ends it within 5 seconds with exit code 0, and the kernel is as it was."""
    objects = objects_of(running.pid)
    started = time.monotonic()
    code = running.stop()

    assert code == 0, running.diagnostics
    assert time.monotonic() - started < 5
    _assert_gone(objects)
    with Victim([programs.wrapper()]) as victim:
        assert _attack(programs, victim).leaked == 3


@pytest.mark.own_agent
def test_sigterm_tells_what_was_seen(running: Agent, programs: Programs):
    """What happened before the stop is told before the end, and wrappers run on."""
    with Victim([programs.wrapper()]) as victim:
        assert _attack(programs, victim).killed == 3
        assert running.stop() == 0
        victim.check()
    assert sum(event["vector"] == _CASE.vector for event in running.events) == 3


@pytest.mark.parametrize(
    "signal_number", [pytest.param(signal.SIGINT, marks=pytest.mark.own_agent), signal.SIGKILL]
)
def test_other_ends(running: Agent, programs: Programs, signal_number: int):
    """The kernel is as it was after SIGINT and after SIGKILL too, and wrappers run on."""
    objects = objects_of(running.pid)
    with Victim([programs.wrapper()]) as victim:
        running.process.send_signal(signal_number)
        assert running.process.wait(5) == (0 if signal_number == signal.SIGINT else -signal_number)
        _assert_gone(objects)
        victim.check()
        assert _attack(programs, victim).leaked == 3


@pytest.mark.own_agent
def test_probes(running: Agent):
    """The probes answer, and metrics has every series from the start."""
    assert running.get("/healthz")[0] == 200
    assert running.get("/readyz")[0] == 200
    assert running.get("/nothing")[0] == 404
    counts = running.counts()
    assert len(counts.outcomes) == 27  # 9 vectors, 3 outcomes
    assert sum(counts.outcomes.values()) == 0
    assert {"rate_limited", "ring_full", "members_full", "undecodable", "sink"} <= set(counts.lost)


@pytest.mark.own_agent
def test_two_agents(running: Agent, programs: Programs, tmp_path: Path):
    """A second agent on the node does not disturb the first, and takes away only what is its own."""
    own = objects_of(running.pid)
    with protecting(["--socket", str(tmp_path / "second.sock"), "--protect-exe", "ct-test-second"]) as second:
        others = objects_of(second.pid)
        assert not own & others
        assert second.stop() == 0
        _assert_gone(others)
    assert objects_of(running.pid) == own
    with Victim([programs.wrapper()]) as victim:
        assert _attack(programs, victim).leaked == 0
