"""What /proc tells of a process, and which file a path is."""

from pathlib import Path

import pytest

from agent.errors import AgentError
from agent.processes import FileId, Processes, file_id
from tests.unit.tables import PID, TICK_NS, begin, identity

RUNTIME = PID - 1


class Node:
    """A /proc in a folder, with a container's process and the runtime that started it."""

    def __init__(self, folder):
        self.proc = begin(folder, 500)
        begin(folder, 400, "runc", RUNTIME)
        self.processes = Processes(folder)
        self.says()
        self.mounts(PID, "mnt:[4026531841]")
        self.mounts(RUNTIME, "mnt:[4026531840]")

    def says(self, *, state="S", flags=0x400000):
        fields = [state, str(RUNTIME), "0", "0", "0", "0", str(flags), *["0"] * 12, "500", "0"]
        (self.proc / str(PID) / "stat").write_text(f"{PID} (a) b) {' '.join(fields)}\n")

    def mounts(self, pid, namespace):
        link = self.proc / str(pid) / "ns/mnt"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(namespace)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_a_process_started_so_long_after_the_boot(node):
    assert node.processes.start_ns(PID) == 500 * TICK_NS


@pytest.mark.parametrize("state", ["Z", "X"])
def test_a_zombie_has_ended(node, state):
    node.says(state=state)

    with pytest.raises(AgentError, match=f"^process {PID} has ended$"):
        node.processes.start_ns(PID)


@pytest.mark.parametrize("asked", ["start_ns", "comm", "is_process", "is_runtime"])
def test_a_process_that_does_not_exist_is_told(node, asked):
    with pytest.raises(AgentError, match=f"^there is no process {PID + 1}$"):
        getattr(node.processes, asked)(PID + 1)


def test_a_thread_is_no_process(node):
    assert node.processes.is_process(PID) is True

    (node.proc / str(PID) / "status").write_text(f"Name:\tapp\nTgid:\t{RUNTIME}\nPid:\t{PID}\n")
    assert node.processes.is_process(PID) is False

    (node.proc / str(PID) / "status").write_text("Name:\tapp\n")
    assert node.processes.is_process(PID) is False


def test_its_name_is_as_long_as_the_kernels(node):
    (node.proc / str(PID) / "comm").write_text("a name of sixteen\n")

    assert node.processes.comm(PID) == b"a name of sixte"


def test_what_it_executes_is_a_file_with_a_name(node, tmp_path):
    assert (node.processes.executable(PID), node.processes.executable_name(PID)) == (None, None)

    program = tmp_path / "program"
    program.touch()
    (node.proc / str(PID) / "exe").symlink_to(program)

    inode, device = identity(program)
    assert node.processes.executable(PID) == FileId(inode=inode, device=device)
    assert node.processes.executable_name(PID) == b"program"


##### The runtime, which makes a container


def test_a_program_in_mounts_of_its_own_is_the_containers(node):
    assert node.processes.is_runtime(PID) is False


def test_what_has_executed_nothing_is_the_runtimes(node):
    node.says(flags=0x400040)

    assert node.processes.is_runtime(PID) is True


def test_what_is_in_the_mounts_of_who_started_it_is_the_runtimes(node):
    node.mounts(PID, "mnt:[4026531840]")

    assert node.processes.is_runtime(PID) is True


@pytest.mark.parametrize("unseen", [(PID,), (RUNTIME,), (PID, RUNTIME)])
def test_where_mounts_cannot_be_seen_it_is_taken_for_the_containers(node, unseen):
    for pid in unseen:
        (node.proc / str(pid) / "ns/mnt").unlink()

    assert node.processes.is_runtime(PID) is False


##### Files


def test_a_path_that_leads_nowhere_is_no_file(tmp_path):
    assert file_id(tmp_path / "gone") is None
    assert file_id(Path("/gone"), tmp_path) is None
    assert file_id(Path("/gone"), tmp_path / "gone") is None


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left(tmp_path):
    (tmp_path / "program").touch()
    before = descriptors()
    for _ in range(7):
        file_id(Path("/program"), tmp_path)
        file_id(Path("/gone"), tmp_path)

    assert descriptors() == before
