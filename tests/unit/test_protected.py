"""What the programs are told to look for, and what is found already running, in maps of dictionaries."""

import shutil
import subprocess
from pathlib import Path

import pytest

from agent import abi
from agent.config import load
from agent.errors import AgentError, ConfigError
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


def test_the_programs_are_told_what_is_asked(protected, kernel):
    protected(mode="strict", actions={"proc-mem": "detect"}, events_per_second=7)

    config = kernel.config()
    expected = {vector.number: Action.KILL for vector in CATALOGUE} | {4: Action.DETECT}
    assert {vector.number: config.action[vector.number] for vector in CATALOGUE} == expected
    assert (config.rate_burst, config.rate_window_ns, config.layer) == (7, 1_000_000_000, Layer.FMOD_RET)
    assert config.armed == 0


def test_the_programs_are_armed_by_the_first_tree(protected, kernel, tmp_path):
    protected(begin(tmp_path, 500)).protect(PID)

    assert kernel.config().armed == 1
    assert kernel.members_when_woken == [0]


FILE, TASK = abi.NameFlag.OF_FILE, abi.NameFlag.OF_TASK


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], {}),
        (["short"], {b"short": FILE | TASK}),
        (["a" * 15], {b"a" * 15: FILE | TASK}),
        (["a" * 16], {b"a" * 16: FILE, b"a" * 15: TASK}),
        (["a" * 31], {b"a" * 31: FILE, b"a" * 15: TASK}),
        (["a" * 16, "a" * 15], {b"a" * 16: FILE, b"a" * 15: FILE | TASK}),
        (["a" * 15, "a" * 16], {b"a" * 16: FILE, b"a" * 15: FILE | TASK}),
        (["a" * 15 + "b", "a" * 15 + "c"], {b"a" * 15 + b"b": FILE, b"a" * 15 + b"c": FILE, b"a" * 15: TASK}),
        (["ü" * 15], {("ü" * 15).encode(): FILE, ("ü" * 15).encode()[:15]: TASK}),
        (["/bin/sh"], {}),
    ],
)
def test_a_name_is_looked_for_as_the_files_and_as_the_tasks(protected, kernel, names, expected):
    protected(protect_exe=names)

    assert kernel.names() == expected


@pytest.mark.parametrize(
    ("flags", "table"),
    [
        ({"protect_exe": ["one", "two"]}, "cloudtaser_name"),
        ({"protect_exe": ["/bin/sh", "/bin/cat"]}, "cloudtaser_wexe"),
        ({"exempt_exe": ["/bin/sh", "/bin/cat"]}, "cloudtaser_xexe"),
    ],
)
def test_more_than_the_programs_can_look_for_is_refused(protected, kernel, flags, table):
    kernel.map(table).room = 1

    with pytest.raises(AgentError):
        protected(**flags)


@pytest.mark.parametrize(
    ("flag", "table"), [("protect_exe", "cloudtaser_wexe"), ("exempt_exe", "cloudtaser_xexe")]
)
def test_a_file_is_followed_through_an_update(protected, kernel, tmp_path, flag, table):
    path, update = tmp_path / "program", tmp_path / "update"
    made = protected(**{flag: [str(path)]})
    assert kernel.files(table) == set()

    path.touch()
    made.refresh()
    first = identity(path)
    assert kernel.files(table) == {first}

    update.touch()
    update.replace(path)
    made.refresh()
    made.refresh()
    assert kernel.files(table) == {identity(path)} != {first}


def test_a_file_that_is_gone_for_a_moment_is_kept(protected, kernel, tmp_path):
    path = tmp_path / "program"
    path.touch()
    known = identity(path)
    made = protected(exempt_exe=[str(path)])

    path.rename(tmp_path / "elsewhere")
    made.refresh()

    assert kernel.files("cloudtaser_xexe") == {known}


def test_a_file_of_two_paths_is_kept_while_one_of_them_leads_to_it(protected, kernel, tmp_path):
    path, link, other = tmp_path / "program", tmp_path / "link", tmp_path / "other"
    path.touch()
    other.touch()
    link.symlink_to(path)
    made = protected(exempt_exe=[str(link), str(path)])

    link.unlink()
    link.symlink_to(other)
    made.refresh()

    assert kernel.files("cloudtaser_xexe") == {identity(path), identity(other)}


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
