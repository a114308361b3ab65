"""Which names and files the programs look for, and which running processes are wrappers or exempt."""

import shutil
import subprocess
from pathlib import Path

import pytest

from agent import abi
from agent.config import load
from agent.errors import AgentError, ConfigError
from agent.executables import Executables
from agent.processes import Processes, file_id
from tests.unit.tables import PID, TICK_NS, Tables, begin, identity


@pytest.fixture
def kernel():
    return Tables()


def config(**flags):
    return load({"protect_exe": [], **flags}, {}, "node-1")


@pytest.fixture
def executables(kernel):
    def executables(*, proc=Path("/proc"), root=Path("/"), **flags):
        made = Executables(kernel, config(**flags), Processes(proc), root)
        made.write()
        return made

    return executables


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
def test_a_name_is_looked_for_as_the_files_and_as_the_tasks(executables, kernel, names, expected):
    executables(protect_exe=names)

    assert kernel.names() == expected


@pytest.mark.parametrize(
    ("flags", "table", "option"),
    [
        ({"protect_exe": ["one", "two"]}, "cloudtaser_name", "protect-exe: more names"),
        ({"protect_exe": ["/bin/sh", "/bin/cat"]}, "cloudtaser_wexe", "protect-exe: more files"),
        ({"exempt_exe": ["/bin/sh", "/bin/cat"]}, "cloudtaser_xexe", "exempt-exe: more files"),
    ],
)
def test_more_than_the_programs_can_look_for_is_refused(executables, kernel, flags, table, option):
    kernel.map(table).room = 1

    with pytest.raises(ConfigError, match=f"^{option} than can be looked for"):
        executables(**flags)


@pytest.mark.parametrize(
    ("flag", "table"), [("protect_exe", "cloudtaser_wexe"), ("exempt_exe", "cloudtaser_xexe")]
)
def test_a_file_is_followed_through_an_update(executables, kernel, tmp_path, flag, table):
    path, update = tmp_path / "program", tmp_path / "update"
    made = executables(**{flag: [str(path)]})
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


def test_a_file_that_is_gone_for_a_moment_is_kept(executables, kernel, tmp_path):
    path = tmp_path / "program"
    path.touch()
    known = identity(path)
    made = executables(exempt_exe=[str(path)])

    path.rename(tmp_path / "elsewhere")
    made.refresh()

    assert kernel.files("cloudtaser_xexe") == {known}


def test_a_file_of_two_paths_is_kept_while_one_of_them_leads_to_it(executables, kernel, tmp_path):
    path, link, other = tmp_path / "program", tmp_path / "link", tmp_path / "other"
    path.touch()
    other.touch()
    link.symlink_to(path)
    made = executables(exempt_exe=[str(link), str(path)])

    link.unlink()
    link.symlink_to(other)
    made.refresh()

    assert kernel.files("cloudtaser_xexe") == {identity(path), identity(other)}


def test_files_are_the_nodes_and_links_stay_in_it(executables, kernel, tmp_path):
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/program").touch()
    (root / "bin").symlink_to("/usr/bin")
    (root / "up").symlink_to("../../../../../../../../bin/sh")
    if file_id(Path("/bin/program"), root) is None:
        pytest.skip("this kernel or sandbox has no openat2")

    executables(root=root, protect_exe=["/bin/program", "/bin/sh", "/up"])

    assert kernel.files("cloudtaser_wexe") == {identity(root / "usr/bin/program")}


##### A new configuration


def test_a_new_configuration_takes_the_place_of_the_old_one(executables, kernel, tmp_path):
    for name in ("first", "second", "exempt"):
        (tmp_path / name).touch()
    made = executables(protect_exe=["one", "two", f"{tmp_path}/first"], exempt_exe=[f"{tmp_path}/exempt"])

    made.change(config(protect_exe=["two", "three", f"{tmp_path}/second"]))

    assert kernel.names() == {b"two": FILE | TASK, b"three": FILE | TASK}
    assert kernel.files("cloudtaser_wexe") == {identity(tmp_path / "second")}
    assert kernel.files("cloudtaser_xexe") == set()


def test_a_file_that_is_named_by_another_path_still_stays(executables, kernel, tmp_path):
    path, link = tmp_path / "program", tmp_path / "link"
    path.touch()
    link.symlink_to(path)
    made = executables(exempt_exe=[str(path), str(link)])

    made.change(config(exempt_exe=[str(link)]))

    assert kernel.files("cloudtaser_xexe") == {identity(path)}


def test_names_that_were_too_many_are_gone_when_there_are_fewer(executables, kernel):
    made = executables(protect_exe=["one"])
    kernel.map("cloudtaser_name").room = 2
    with pytest.raises(ConfigError):
        made.change(config(protect_exe=["one", "two", "three"]))

    made.change(config(protect_exe=["three"]))

    assert kernel.names().keys() == {b"three"}


##### Processes that run


def test_a_file_that_does_not_fit_is_tried_again_and_others_are_looked_for(executables, kernel, tmp_path):
    files = [tmp_path / name for name in ("one", "two")]
    files[0].touch()
    made = executables(exempt_exe=[str(path) for path in files])
    kernel.map("cloudtaser_xexe").room = 1
    files[1].touch()
    for _ in range(2):
        with pytest.raises(ConfigError, match="exempt-exe: more files"):
            made.refresh()
    assert kernel.files("cloudtaser_xexe") == {identity(files[0])}

    kernel.map("cloudtaser_xexe").room = 2
    made.refresh()
    assert kernel.files("cloudtaser_xexe") == {identity(path) for path in files}


@pytest.fixture
def started(tmp_path):
    """Start a process that waits under a name, and end it."""
    running = []

    def started(name):
        shutil.copy("/bin/sleep", tmp_path / name)
        running.append(subprocess.Popen([tmp_path / name, "60"]))
        return running[-1].pid

    yield started
    for each in running:
        each.kill()
        each.wait()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("ct-unit-program-with-a-name", True),
        ("ct-unit-program", True),  # what the kernel calls it, which is shorter
        ("ct-unit-progra", False),
        ("{folder}/ct-unit-program-with-a-name", True),
        ("{folder}/another", False),
    ],
)
def test_a_wrapper_is_one_by_its_name_or_its_file(executables, tmp_path, started, setting, expected):
    pid = started("ct-unit-program-with-a-name")
    made = executables(protect_exe=[setting.format(folder=tmp_path)])

    assert made.is_wrapper(pid, Processes().executable(pid)) is expected


def test_a_kernel_thread_is_no_wrapper(executables, tmp_path):
    made = executables(proc=begin(tmp_path, 500), protect_exe=["wrapper"])

    assert made.is_wrapper(PID, None) is False


class Node:
    """A /proc whose process PID executes a file."""

    def __init__(self, folder):
        self.proc = begin(folder / "proc", 500)
        self.listed, self.other = folder / "listed", folder / "other"
        self.listed.touch()
        self.other.touch()
        self.exe = self.proc / str(PID) / "exe"
        self.runs(self.listed)

    def runs(self, path):
        self.exe.unlink(missing_ok=True)
        self.exe.symlink_to(path)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_a_process_is_exempt_while_it_is_itself(executables, kernel, node):
    made = executables(proc=node.proc, exempt_exe=[str(node.listed)])

    made.exempt_if_listed(PID, file_id(node.listed))

    assert kernel.exempt() == {PID: 500 * TICK_NS}


def test_what_is_not_listed_is_not_exempt(executables, kernel, node):
    made = executables(proc=node.proc, exempt_exe=[str(node.listed)])

    made.exempt_if_listed(PID, file_id(node.other))

    assert kernel.exempt() == {}


@pytest.mark.parametrize("then", ["execs another", "has gone"])
def test_who_is_somebody_else_by_now_is_not_exempt(executables, kernel, node, then, monkeypatch):
    made = executables(proc=node.proc, exempt_exe=[str(node.listed)])

    def change():
        if then == "execs another":
            node.runs(node.other)
        else:
            monkeypatch.setattr(Processes, "executable", gone)

    kernel.map("cloudtaser_xpid").before_update = change

    made.exempt_if_listed(PID, file_id(node.listed))

    assert kernel.exempt() == {}


def gone(_self, pid):
    message = f"there is no process {pid}"
    raise AgentError(message)
