"""How a process becomes the root of a protected tree, and stays itself while we look."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import abi
from agent.config import load
from agent.errors import AgentError
from agent.events import TreeBegins, TreeEnds, TreeId, decode
from agent.protected import Home, Protected
from agent.vectors import Layer
from tests.unit.tables import PID, TICK_NS, Tables, begin, start_ticks


class Node:
    """A node with a /proc of its own, whose process PID started 500 ticks after the boot."""

    def __init__(self, folder):
        self.proc = begin(folder, 500)
        self.kernel = Tables()
        self.members = self.kernel.map("cloudtaser_memb")
        self.begun: list[object] = []

    def protected(self, proc=None, **world):
        return Protected(
            self.kernel,
            load({}, {}, "node-1"),
            Layer.LSM,
            announce=lambda record: self.begun.append(decode(record)),
            proc=proc or self.proc,
            **world,
        )

    def has(self, start_ns, slack_ns=0, tree_pid=PID):
        """Let the kernel have a member with this pid."""
        tree = abi.Tree(pid=tree_pid, start_ns=17)
        member = abi.Member(tree=tree, start_ns=start_ns, slack_ns=slack_ns)
        self.members.content[PID.to_bytes(4, "little")] = bytes(member)

    def joins(self, pid, tree_pid, **member):
        """Let the kernel have a member of a tree."""
        tree = abi.Tree(pid=tree_pid, start_ns=17)
        self.members.content[pid.to_bytes(4, "little")] = bytes(abi.Member(tree=tree, **member))


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


# A parent with a child and a grandchild, which tell their pids.
FAMILY = """
import os, time
for _ in range(3):
    print(os.getpid(), flush=True)
    if os.fork():
        break
time.sleep(60)
"""


@pytest.fixture
def family():
    """The pids of a process, its child and its grandchild; there is one more, which says nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, start_new_session=True
    ) as of:
        assert of.stdout
        yield [int(of.stdout.readline()) for _ in range(3)]
        os.killpg(of.pid, 9)


def test_a_process_becomes_the_root_of_a_tree(node):
    tree = node.protected().protect(PID)

    start_ns = 500 * TICK_NS
    expected = abi.Member(
        tree=abi.Tree(pid=PID, start_ns=start_ns), start_ns=start_ns, slack_ns=TICK_NS - 1, comm=b"a (b) c"
    )
    assert tree == TreeId(pid=PID, start_ns=start_ns)
    assert {pid: bytes(member) for pid, member in node.kernel.members().items()} == {PID: bytes(expected)}


def test_a_tree_is_announced_once(node):
    protected = node.protected()

    trees = [protected.protect(PID), protected.protect(PID)]

    assert [type(each) for each in node.begun] == [TreeBegins]
    assert [(each.tree, each.wrapper.tgid, each.wrapper.comm) for each in node.begun] == [
        (trees[0], PID, "a (b) c")
    ]
    assert trees[0] == trees[1]


def test_the_canary_is_marked_and_not_announced(node):
    node.protected().protect(PID, abi.MemberFlag.CANARY)

    assert [member.flags for member in node.kernel.members().values()] == [abi.MemberFlag.CANARY]
    assert node.begun == []


def test_what_descends_from_it_is_of_its_tree(node, family):
    tree = node.protected(Path("/proc")).protect(family[0])

    members = node.kernel.members()
    assert members.keys() >= set(family)
    assert {(member.tree.pid, member.tree.start_ns) for member in members.values()} == {
        (tree.pid, tree.start_ns)
    }
    assert {pid: members[pid].start_ns for pid in family} == {
        pid: start_ticks(pid) * TICK_NS for pid in family
    }


def test_what_descends_from_it_may_go_while_we_look(node, monkeypatch):
    monkeypatch.setattr("agent.protected._descendants", lambda _pid: [PID + 1])

    node.protected().protect(PID)

    assert node.kernel.members().keys() == {PID}


def test_a_process_let_go_is_no_member(node):
    protected = node.protected()
    protected.protect(PID)

    protected.forget(PID)

    assert node.kernel.members() == {}


@pytest.mark.parametrize(
    ("pid", "why"),
    [
        (1, "process 1 is everybody's ancestor: its tree is every process, attackers too"),
        (os.getpid(), "the agent does not protect itself"),
        (PID + 1, f"there is no process {PID + 1}"),
    ],
    ids=["the first", "itself", "nobody"],
)
def test_what_cannot_be_protected_is_refused(node, pid, why):
    with pytest.raises(AgentError) as refusal:
        node.protected().protect(pid)

    assert str(refusal.value) == why
    assert node.kernel.members() == {}
    assert node.begun == []


THREAD = """
import threading, time
thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
thread.start()
print(thread.native_id, flush=True)
thread.join()
"""


# /proc/T exists for a thread, too, but a member is looked up by its thread group: nothing would be protected.
def test_a_thread_is_no_process(node):
    with subprocess.Popen([sys.executable, "-c", THREAD], stdout=subprocess.PIPE) as process:
        assert process.stdout
        thread = int(process.stdout.readline())
        try:
            with pytest.raises(AgentError):
                node.protected(Path("/proc")).protect(thread)
        finally:
            process.kill()

    assert node.kernel.members() == {}


# The kernel's start times have nanoseconds, those of /proc are cut to a tick.
@pytest.mark.parametrize("beyond_ns", [0, 1, TICK_NS - 1])
def test_a_member_stays_in_its_tree(node, beyond_ns):
    node.has(500 * TICK_NS + beyond_ns, tree_pid=4711)

    assert node.protected().protect(PID) == TreeId(pid=4711, start_ns=17)
    assert [member.tree.pid for member in node.kernel.members().values()] == [4711]
    assert node.begun == []


@pytest.mark.parametrize("start_ns", [400 * TICK_NS, 500 * TICK_NS - 1, 501 * TICK_NS, 600 * TICK_NS])
def test_a_dead_member_with_the_same_pid_gives_way(node, start_ns):
    node.has(start_ns, tree_pid=4711)

    tree = node.protected().protect(PID)

    assert tree == TreeId(pid=PID, start_ns=500 * TICK_NS)
    assert [member.tree.pid for member in node.kernel.members().values()] == [PID]


def test_a_full_map_says_what_to_raise(node):
    node.members.room = 0

    with pytest.raises(
        AgentError, match=r"^the map of protected processes is full: raise max-processes above 16384$"
    ):
        node.protected().protect(PID)

    assert node.begun == []


@pytest.mark.parametrize("another", [501, None], ids=["another has its pid", "nobody has its pid"])
def test_a_process_that_ends_while_we_look_is_not_protected(node, tmp_path, another):
    def end():
        if another:
            begin(tmp_path, another)
        else:
            (node.proc / str(PID) / "stat").unlink()

    node.members.before_update = end

    with pytest.raises(AgentError, match=f"^process {PID} has just ended$"):
        node.protected().protect(PID)

    assert node.kernel.members() == {}
    assert node.begun == []


def ended(pid, start_ns):
    record = abi.TreeRecord(
        header=abi.Header(kind=abi.Kind.TREE_ENDS, size=ctypes.sizeof(abi.TreeRecord)),
        tree=abi.Tree(pid=pid, start_ns=start_ns),
    )
    return bytes(record)


def test_a_tree_ends_with_its_last_process(node):
    node.has(500 * TICK_NS, tree_pid=4711)
    protected = node.protected()
    protected.wrapper_gone(ended(4711, 17))
    protected.wrapper_gone(ended(4711, 17))  # two last threads that exit at once both report it
    protected.announce_ends()

    assert node.begun == []
    protected.forget(PID)
    protected.announce_ends()
    protected.announce_ends()
    assert [event.tree for event in node.begun] == [TreeId(pid=4711, start_ns=17)]
    assert [type(event) for event in node.begun] == [TreeEnds]


##### Where a tree lives


def test_a_tree_and_what_descends_from_it_have_its_home(node, family):
    asked = []

    def home_of(pid):
        asked.append(pid)
        return Home(pod=11, cgroup=13)

    node.protected(Path("/proc"), home_of=home_of).protect(family[0])

    members = node.kernel.members().values()
    assert {(member.pod, member.cgroup) for member in members} == {(11, 13)}
    assert asked == [family[0]]
    assert [event.cgroup_id for event in node.begun] == [13]


def test_who_knows_the_home_need_not_ask(node):
    def home_of(pid):
        raise AssertionError(pid)

    node.protected(home_of=home_of).protect(PID, abi.MemberFlag.OF_POD, Home(pod=11, cgroup=13))

    member = node.kernel.members()[PID]
    assert (member.pod, member.cgroup, member.flags) == (11, 13, abi.MemberFlag.OF_POD)
    assert [type(event) for event in node.begun] == [TreeBegins]


def test_outside_of_kubernetes_nobody_has_a_home(node):
    node.protected().protect(PID)

    assert [(member.pod, member.cgroup, member.flags) for member in node.kernel.members().values()] == [
        (0, 0, 0)
    ]


def test_whether_a_process_is_a_member_is_known(node):
    protected = node.protected()
    assert protected.is_member(PID) is False

    protected.protect(PID)
    assert protected.is_member(PID) is True

    begin(node.proc, 700)
    assert protected.is_member(PID) is False
    (node.proc / str(PID) / "stat").unlink()
    with pytest.raises(AgentError, match=f"^there is no process {PID}$"):
        protected.is_member(PID)


def test_a_process_has_a_name_while_it_runs(node):
    assert node.protected().comm(PID) == b"a (b) c"
    assert node.protected().comm(PID + 1) == b""


##### Trees that are let go


def test_trees_are_let_go_whole_and_told_once(node):
    for pid, tree_pid, pod in (
        (PID, PID, 11),
        (PID + 1, PID, 11),
        (PID + 2, PID + 2, 11),
        (PID + 3, PID + 3, 12),
    ):
        node.joins(pid, tree_pid, pod=pod, cgroup=13, comm=f"comm-{pid}".encode())

    gone = node.protected().forget_trees(lambda member: member.pod == 11)

    assert node.kernel.members().keys() == {PID + 3}
    assert gone.keys() == {TreeId(pid=PID, start_ns=17), TreeId(pid=PID + 2, start_ns=17)}
    ends = [decode(record) for record in gone.values()]
    assert [(type(end), end.tree, end.cgroup_id) for end in ends] == [(TreeEnds, tree, 13) for tree in gone]
    assert [record.pod for record in map(abi.TreeRecord.from_buffer_copy, gone.values())] == [11, 11]
    assert node.begun == []


def test_what_forks_while_it_is_let_go_goes_too(node):
    node.joins(PID, PID)
    children = iter([PID + 1, PID + 2])
    delete = node.members.delete

    def forks_first(key):
        for child in children:
            node.joins(child, PID)
            break
        return delete(key)

    node.members.delete = forks_first

    gone = node.protected().forget_trees(lambda _member: True)

    assert node.kernel.members() == {}
    assert gone.keys() == {TreeId(pid=PID, start_ns=17)}


def test_a_tree_without_its_wrapper_is_let_go_with_what_the_kernel_said_of_it(node):
    node.joins(PID + 1, PID)
    protected = node.protected()
    record = ended(PID, 17)
    protected.wrapper_gone(record)

    gone = protected.forget_trees(lambda _member: True)
    protected.announce_ends()

    assert gone == {TreeId(pid=PID, start_ns=17): record}
    assert node.begun == []


def test_where_nothing_is_chosen_nothing_is_let_go(node):
    node.joins(PID, PID)

    assert node.protected().forget_trees(lambda _member: False) == {}
    assert node.kernel.members().keys() == {PID}


def test_a_zombie_is_no_process_any_more(node):
    stat = node.proc / str(PID) / "stat"
    stat.write_text(stat.read_text().replace(") S ", ") Z "))

    with pytest.raises(AgentError, match=f"^process {PID} has ended$"):
        node.protected().protect(PID)
