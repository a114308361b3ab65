"""What is found already running, and how a new configuration is followed, in maps of dictionaries."""

import shutil
import subprocess
from pathlib import Path

import pytest

from agent.config import load
from agent.errors import ConfigError
from agent.events import decode
from agent.protected import Protected
from agent.vectors import CATALOGUE, Action, Layer
from tests.unit.tables import PID, TICK_NS, Tables, begin, identity, start_ticks


@pytest.fixture
def kernel():
    return Tables()


@pytest.fixture
def begun():
    """What was announced, decoded."""
    return []


@pytest.fixture
def protected(kernel, begun):
    def protected(proc=Path("/proc"), **flags):
        config = load({"protect_exe": [], **flags}, {}, "node-1")
        made = Protected(
            kernel, config, Layer.FMOD_RET, announce=lambda record: begun.append(decode(record)), proc=proc
        )
        made.configure()
        return made

    return protected


@pytest.fixture
def started(tmp_path):
    """Start processes that wait under a name, and end them."""
    running = []

    def started(name, by=None):
        shutil.copy("/bin/sleep", tmp_path / name)
        running.append(subprocess.Popen([tmp_path / (by or name), "60"]))
        return running[-1].pid

    started.folder = tmp_path  # type: ignore[attr-defined]
    yield started
    for each in running:
        each.kill()
        each.wait()


def test_the_programs_are_armed_by_the_first_tree(protected, kernel, tmp_path):
    protected(begin(tmp_path, 500)).protect(PID)

    assert kernel.config().armed == 1
    assert kernel.members_when_woken == [0]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("ct-unit-wrapper", "ct-unit-wrapper"),
        ("ct-unit-wrapper-with-a-long-nam", "ct-unit-wrapper-with-a-long-nam"),
        ("ct-unit-path", "{folder}/ct-unit-path"),
    ],
    ids=["by a short name", "by a long name", "by its path"],
)
def test_a_wrapper_that_runs_already_is_protected(protected, kernel, started, name, setting):
    pid, path = started(name), started.folder
    made = protected(protect_exe=[setting.format(folder=path)])

    made.scan()

    assert {found: member.comm for found, member in kernel.members().items()} == {pid: name[:15].encode()}


def test_a_wrapper_that_runs_by_the_name_of_a_link_is_protected(protected, kernel, tmp_path, started):
    (tmp_path / "ct-unit-link").symlink_to("ct-unit-program")
    pid = started("ct-unit-program", by="ct-unit-link")

    protected(protect_exe=["ct-unit-link"]).scan()

    assert kernel.members().keys() == {pid}


def test_a_wrapper_that_is_protected_already_is_left_alone(protected, kernel, begun, started):
    made = protected(protect_exe=["ct-unit-twice"])
    pid = started("ct-unit-twice")

    made.scan()
    before = bytes(kernel.members()[pid])
    made.scan()

    assert bytes(kernel.members()[pid]) == before
    assert [each.tree.pid for each in begun] == [pid]


def test_what_is_called_otherwise_is_not_protected(protected, kernel, started):
    made = protected(protect_exe=["ct-unit-wrapper"])
    started("ct-unit-other")

    made.scan()

    assert kernel.members() == {}


def test_a_process_named_by_its_pid_is_protected(protected, kernel, started):
    pid = started("ct-unit-any")

    protected(protect_pid=[pid]).scan()

    assert kernel.members().keys() == {pid}


def test_a_process_that_goes_while_we_look_is_passed_over(protected, kernel, started, monkeypatch):
    pid = started("ct-unit-here")
    monkeypatch.setattr("agent.protected.psutil.pids", lambda: [1 << 22, pid])

    protected(protect_exe=["ct-unit-here"]).scan()

    assert kernel.members().keys() == {pid}


def test_a_new_configuration_is_followed_and_trees_stay(protected, kernel, started):
    pid = started("ct-unit-before")
    made = protected(protect_exe=["ct-unit-before"])
    made.scan()

    made.change(load({"protect_exe": ["ct-unit-after"], "mode": "detect"}, {}, "node-1"))

    assert kernel.names().keys() == {b"ct-unit-after"}
    assert kernel.config().action[4] == Action.DETECT
    assert kernel.members().keys() == {pid}


def test_files_are_followed(protected, kernel, tmp_path):
    made = protected(protect_exe=[f"{tmp_path}/program"])
    (tmp_path / "program").touch()

    made.refresh()

    assert kernel.files("cloudtaser_wexe") == {identity(tmp_path / "program")}


@pytest.mark.parametrize(
    ("pid", "why"),
    [(1 << 22, f"there is no process {1 << 22}"), (1, "process 1 is everybody's ancestor: ")],
)
def test_a_process_that_cannot_be_protected_is_a_mistake_of_the_configuration(protected, pid, why):
    with pytest.raises(ConfigError) as refusal:
        protected(protect_pid=[pid]).scan()

    assert str(refusal.value).startswith(f"--protect-pid {pid}: {why}")


def test_an_exempt_executable_that_runs_already_is_exempt(protected, kernel, tmp_path, started):
    pid = started("ct-unit-exempt")
    made = protected(exempt_exe=[f"{tmp_path}/ct-unit-exempt"])

    made.scan()

    assert kernel.exempt() == {pid: start_ticks(pid) * TICK_NS}
    assert kernel.members() == {}


def test_actions_change_though_names_do_not_fit(protected, kernel):
    made = protected(protect_exe=["one"])
    kernel.map("cloudtaser_name").room = 1
    with pytest.raises(ConfigError):
        made.change(load({"protect_exe": ["two", "three"], "mode": "detect"}, {}, "node-1"))

    assert {kernel.config().action[vector.number] for vector in CATALOGUE} == {Action.DETECT}
