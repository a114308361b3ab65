"""Pods that the API server tells of and cgroups that are folders, in a kernel of nothing but maps."""

import ctypes
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from agent import abi
from agent.abi import PodKind
from agent.attribution import Attribution
from agent.cgroups import Cgroups
from agent.config import load
from agent.events import TreeBegins, TreeEnds, TreeId, decode
from agent.hierarchy import Hierarchy
from agent.pod_watch import PodGone, PodIs
from agent.pods import Container, ContainerKind, Inject, Pod
from agent.protected import Home, Protected
from agent.rules import PodRules
from agent.vectors import BY_ID, Action, Layer
from agent.workloads import Workloads, home_of
from tests.unit.tables import PID, TICK_NS, Tables, begin

UID = "6f1b2c3d-0a1b-4c5d-8e9f-001122334455"
OTHER = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
STATIC = "0123456789abcdef0123456789abcdef"
APP, SIDE, PAUSE = "0a1b2c3d" * 8, "9f8e7d6c" * 8, "5" * 64
TOP = "/kubepods/burstable"
POD = f"{TOP}/pod{UID}"

INIT, REGULAR, EPHEMERAL = ContainerKind.INIT, ContainerKind.REGULAR, ContainerKind.EPHEMERAL
YES, NO, UNSAID = Inject.YES, Inject.NO, Inject.UNSAID


def pod(inject=YES, *containers, **changes):
    listed = tuple(
        Container(id=id_, name=f"name-of-{id_[:3]}", kind=kind)
        for id_, kind in containers or [(APP, REGULAR)]
    )
    made = Pod(
        uid=UID,
        api_uid=UID,
        namespace="prod",
        name="shop",
        inject=inject,
        mode=None,
        actions=(),
        shared_pids=False,
        containers=listed,
        mistakes=(),
    )
    return replace(made, **changes)


class Node:
    """A node with cgroups and a /proc in folders, and what was told of it."""

    def __init__(self, folder):
        self.mount, self.proc = folder / "cgroup", folder / "proc"
        self.mount.mkdir()
        self.kernel = Tables()
        self.told: list[object] = []
        self.config = load({}, {}, "node-1")
        self.cgroups = Cgroups(Hierarchy(mount=self.mount, controller=None, number=0), self.proc)
        self.attribution = Attribution(self.cgroups)
        self.protected = Protected(
            self.kernel,
            self.config,
            Layer.LSM,
            announce=self.tell,
            pods=PodRules(hierarchy=0),
            home_of=lambda pid: home_of(self.cgroups, pid),
            proc=self.proc,
        )
        self.protected.rules.begin()
        self.workloads = Workloads(
            self.kernel, self.protected, self.cgroups, self.attribution, self.config, announce=self.tell
        )

    def tell(self, record):
        self.told.append(decode(record))

    @property
    def lines(self):
        """What was told, in a word and a pid."""
        words = {TreeBegins: "begins", TreeEnds: "ends"}
        return [(words[type(each)], each.tree.pid) for each in self.told]  # type: ignore[attr-defined]

    def make(self, path):
        directory = Path(f"{self.mount}{path}")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").touch()
        return directory.stat().st_ino

    def id(self, path):
        return Path(f"{self.mount}{path}").stat().st_ino

    def remove(self, path):
        shutil.rmtree(f"{self.mount}{path}")

    def run(self, path, pid=PID, comm="app", *, started=500, in_namespaces=(1,)):
        """Let a process run in a cgroup; without namespaces it is in the node's pid namespace."""
        self.make(path)
        begin(self.proc, started, comm, pid)
        numbers = "\t".join(str(number) for number in (pid, *in_namespaces))
        with (self.proc / str(pid) / "status").open("a") as status:
            status.write(f"NSpid:\t{numbers}\n")
        (self.proc / str(pid) / "cgroup").write_text(f"0::{path}\n")
        with Path(f"{self.mount}{path}/cgroup.procs").open("a") as pids:
            pids.write(f"{pid}\n")

    def end(self, pid=PID):
        """Let a process end that is no member, or whose membership goes with it."""
        shutil.rmtree(self.proc / str(pid))
        for pids in self.mount.rglob("cgroup.procs"):
            pids.write_text(pids.read_text().replace(f"{pid}\n", ""))
        self.protected.forget(pid)

    def pods(self):
        """What the kernel knows of cgroups, by id."""
        return {
            key.value: value for key, value in self.kernel.of("cloudtaser_pods", ctypes.c_uint64, abi.Pod)
        }

    def kinds(self):
        return {key: value.kind for key, value in self.pods().items()}

    def main(self):
        found = self.kernel.of("cloudtaser_main", ctypes.c_uint64, ctypes.c_uint32)
        return {key.value: value.value for key, value in found}

    def take(self, *changes):
        self.workloads.take(changes)

    def is_pod(self, *args, **changes):
        self.take(PodIs(pod=pod(*args, **changes)))

    def new_cgroup(self, path):
        """Make a cgroup and return the kernel's word of it."""
        return abi.CgroupRecord(
            header=abi.Header(kind=abi.Kind.CGROUP, size=ctypes.sizeof(abi.CgroupRecord)),
            id=self.make(path),
            parent=self.id(str(Path(path).parent)),
        )

    def makes_cgroup(self, path):
        """Let the kernel tell of a new cgroup."""
        return self.workloads.cgroup_made(bytes(self.new_cgroup(path)))

    def record(self, kind, path, pid=PID, comm=b"app", start_ns=17):
        """Return what the kernel tells of a tree in a container."""
        return bytes(
            abi.TreeRecord(
                header=abi.Header(kind=kind, size=ctypes.sizeof(abi.TreeRecord)),
                wrapper=abi.Task(tgid=pid, tid=pid, comm=comm),
                tree=abi.Tree(pid=pid, start_ns=start_ns),
                cgroup=self.id(path),
                pod=self.id(str(Path(path).parent)) if path.startswith(TOP) else 0,
            )
        )

    def begins(self, path=f"{POD}/{APP}", pid=PID, comm=b"app", *, flags=abi.MemberFlag.OF_POD):
        """Let the kernel protect a container by itself; return whether that is to be told."""
        record = self.record(abi.Kind.TREE_BEGINS, path, pid, comm)
        told = abi.TreeRecord.from_buffer_copy(record)
        self.has(pid, told.tree, told.pod, told.cgroup, flags)
        return self.workloads.tree_begins(record)

    def has(self, pid, tree, pod=0, cgroup=0, flags=0):
        member = abi.Member(
            tree=tree, start_ns=tree.start_ns, pod=pod, cgroup=cgroup, flags=flags, comm=b"app"
        )
        self.kernel.map("cloudtaser_memb").update(ctypes.c_uint32(pid), member)

    def ends(self, path=f"{POD}/{APP}", pid=PID):
        """Let the wrapper end, and the kernel tell of it; what it leaves stays."""
        self.protected.forget(pid)
        return self.workloads.wrapper_gone(self.record(abi.Kind.TREE_ENDS, path, pid))

    def second(self):
        self.workloads.refresh()
        self.protected.announce_ends()


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


@pytest.fixture
def unknown(node):
    """A node with a container whose pod is not known yet."""
    node.make(f"{POD}/{APP}")
    node.workloads.begin()
    return node


@pytest.fixture
def running(node):
    """A node with a container that runs, as an agent finds it."""
    node.run(f"{POD}/{APP}")
    node.workloads.begin()
    return node


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


##### Pods and their cgroups


def test_the_cgroups_that_pods_are_in_are_told_to_the_kernel(node):
    node.make(POD)
    node.make("/kubepods/besteffort")

    node.workloads.begin()

    tops = ["/kubepods", TOP, "/kubepods/besteffort"]
    assert node.kinds() == {node.id(path): PodKind.PARENT for path in tops}
    assert node.kernel.config().any_parent == 0


def test_until_there_is_a_pod_the_programs_look_everywhere(node):
    node.workloads.begin()
    assert (node.kinds(), node.kernel.config().any_parent) == ({}, 1)

    assert node.makes_cgroup("/kubepods") is False
    assert node.kinds() == {node.id("/kubepods"): PodKind.PARENT}
    assert node.kernel.config().any_parent == 0


def test_a_quality_of_service_is_found_when_it_is_made(node):
    node.make("/kubepods")
    node.workloads.begin()

    node.makes_cgroup(TOP)

    assert node.kinds() == dict.fromkeys([node.id("/kubepods"), node.id(TOP)], PodKind.PARENT)


def test_a_parent_that_does_not_fit_is_tried_again(node):
    node.make(TOP)
    node.kernel.map("cloudtaser_pods").room = 1
    node.workloads.begin()
    assert len(node.kinds()) == 1

    node.kernel.map("cloudtaser_pods").room = 2
    for _ in range(10):
        node.second()

    assert node.kinds() == dict.fromkeys([node.id("/kubepods"), node.id(TOP)], PodKind.PARENT)


def test_a_quality_of_service_that_has_gone_is_forgotten(node):
    node.make(TOP)
    node.workloads.begin()

    node.remove(TOP)
    node.second()

    assert node.kinds() == {node.id("/kubepods"): PodKind.PARENT}
    assert node.kernel.config().any_parent == 0


def test_where_all_have_gone_the_programs_look_everywhere_again(node):
    node.make(POD)
    node.workloads.begin()

    node.remove("/kubepods")
    node.second()
    assert (node.kinds(), node.kernel.config().any_parent) == ({}, 1)

    node.makes_cgroup("/kubepods")
    assert node.kinds() == {node.id("/kubepods"): PodKind.PARENT}
    assert node.kernel.config().any_parent == 0


def test_those_that_came_back_in_the_same_second_are_found(node):
    node.make("/kubepods")
    node.workloads.begin()

    node.make("/next")  # first: a folder's number, unlike a cgroup's, is given out again
    (node.mount / "kubepods").rename(node.mount / "before")
    (node.mount / "next").rename(node.mount / "kubepods")
    node.second()

    assert node.kinds() == {node.id("/kubepods"): PodKind.PARENT}
    assert node.kernel.config().any_parent == 0


def test_without_rules_for_pods_none_are_written(node):
    node.protected.rules.pods = None
    node.protected.rules.begin()
    node.make(POD)
    node.workloads.begin()
    node.is_pod(YES, shared_pids=True)

    assert node.kinds()[node.id(POD)] == PodKind.YES
    node.remove("/kubepods")
    node.second()

    assert (node.kinds(), node.kernel.config().pods) == ({}, 0)


@pytest.mark.parametrize(
    ("inject", "kind"), [(YES, PodKind.YES), (NO, PodKind.NO), (UNSAID, PodKind.UNSAID)], ids=str
)
@pytest.mark.parametrize("first", ["pod", "cgroup"])
def test_a_pod_and_its_cgroup_come_in_any_order(node, inject, kind, first):
    node.make(TOP)
    node.workloads.begin()
    if first == "pod":
        node.take(PodIs(pod=pod(inject, containers=())))
        assert set(node.kinds().values()) == {PodKind.PARENT}
    node.makes_cgroup(POD)
    if first == "cgroup":
        assert node.id(POD) not in node.kinds()
        node.take(PodIs(pod=pod(inject, containers=())))

    assert node.kinds()[node.id(POD)] == kind


def test_a_static_pod_is_found_by_its_hash(node):
    node.make(f"{TOP}/pod{STATIC}")
    node.workloads.begin()

    node.is_pod(uid=STATIC, api_uid=UID)
    assert node.kinds()[node.id(f"{TOP}/pod{STATIC}")] == PodKind.YES

    node.take(PodGone(api_uid=UID))
    assert node.workloads.pods() == {YES: 0, NO: 0, UNSAID: 0}


def test_what_the_pod_asks_for_is_what_the_kernel_does(unknown):
    unknown.is_pod(mode="strict", shared_pids=True)

    told = unknown.pods()[unknown.id(POD)]
    assert {told.action[vector.number] for vector in BY_ID.values()} == {Action.KILL}
    assert told.shared_pids == 1


def test_the_kernel_is_told_what_has_changed_alone(unknown):
    unknown.is_pod()
    table = unknown.kernel.map("cloudtaser_pods")
    written = count()
    table.before_update = lambda: next(written)

    unknown.is_pod()
    assert next(written) == 0

    unknown.is_pod(mode="strict")
    assert next(written) == 2


def test_a_new_configuration_holds_for_pods_that_run(unknown):
    unknown.is_pod()
    proc_mem = BY_ID["proc-mem"].number
    assert unknown.pods()[unknown.id(POD)].action[proc_mem] == Action.KILL

    unknown.workloads.change(load({"mode": "detect"}, {}, "node-1"))

    assert unknown.pods()[unknown.id(POD)].action[proc_mem] == Action.DETECT


@pytest.mark.parametrize("inject", Inject)
def test_the_programs_look_for_shared_namespaces_where_a_protected_pod_has_one(unknown, inject):
    unknown.is_pod(inject)
    assert unknown.kernel.config().shared_pods == 0

    unknown.is_pod(inject, shared_pids=True)
    unknown.is_pod(inject, shared_pids=True)

    assert unknown.kernel.config().shared_pods == (inject is YES)


def test_more_pods_than_the_kernel_has_room_for_is_said_once(unknown, caplog):
    unknown.kernel.map("cloudtaser_pods").room = 2

    unknown.is_pod()
    unknown.is_pod(mode="strict")

    assert [line.partition(":")[0] for line in lines(caplog)] == [
        "more pods than the programs can tell apart"
    ]
    assert unknown.workloads.mistakes == 1
    assert unknown.kinds().keys() == {unknown.id("/kubepods"), unknown.id(TOP)}

    unknown.kernel.map("cloudtaser_pods").room = 3
    unknown.second()
    assert unknown.kinds()[unknown.id(POD)] == PodKind.YES


def test_mistakes_of_a_pod_are_said_once(unknown, caplog):
    for mode in ("stirct", "stirct", "strict"):
        unknown.is_pod(mode=mode)

    assert lines(caplog) == [
        "pod prod/shop: annotation cloudtaser.io/ebpf-mode: unknown mode 'stirct', did you mean 'strict'?"
    ]
    assert unknown.workloads.mistakes == 1


def test_what_pods_say_does_not_fill_the_log(unknown, caplog, monkeypatch):
    monkeypatch.setattr("agent.workloads._MOST_LINES", 2)
    for number in range(5):
        unknown.is_pod(mode=f"mode-{number}")

    assert len(lines(caplog)) == unknown.workloads.mistakes == 2


def test_pods_are_counted_by_what_they_say(node):
    node.take(
        *(PodIs(pod=pod(inject, uid=f"{n}", api_uid=f"{n}")) for n, inject in enumerate([YES, NO, YES]))
    )
    assert node.workloads.pods() == {YES: 2, NO: 1, UNSAID: 0}

    node.take(PodGone(api_uid="0"), PodGone(api_uid="nobody"))
    assert node.workloads.pods() == {YES: 1, NO: 1, UNSAID: 0}


def test_a_pod_that_was_replaced_under_its_uid_is_not_forgotten_with_the_old_one(unknown):
    unknown.is_pod(NO, api_uid="old")
    unknown.is_pod(YES, api_uid="new")
    unknown.take(PodGone(api_uid="old"))

    unknown.workloads.change(load({"mode": "strict"}, {}, "node-1"))

    assert unknown.kinds()[unknown.id(POD)] == PodKind.YES
    assert unknown.pods()[unknown.id(POD)].action[BY_ID["proc-environ"].number] == Action.KILL


def test_a_pod_whose_cgroup_has_gone_is_forgotten(unknown):
    unknown.is_pod(shared_pids=True)
    container = unknown.id(f"{POD}/{APP}")
    unknown.kernel.map("cloudtaser_main").update(ctypes.c_uint64(container), ctypes.c_uint32(PID))
    unknown.take(PodGone(api_uid=UID))
    unknown.second()
    assert len(unknown.kinds()) == 3

    unknown.remove(POD)
    unknown.second()

    assert set(unknown.kinds().values()) == {PodKind.PARENT}
    assert unknown.main() == {}
    assert unknown.workloads._homes.unwritten() == []
    assert unknown.workloads._homes.of_uid(UID) is None


def test_of_two_cgroups_of_a_pod_the_last_one_stays(node):
    elsewhere = f"/kubepods/besteffort/pod{UID}"
    node.make(POD)
    node.workloads.begin()
    node.make(elsewhere)
    for _ in range(10):
        node.second()
    node.remove(POD)
    node.second()

    node.is_pod()

    assert node.kinds()[node.id(elsewhere)] == PodKind.YES


def test_a_container_that_has_gone_is_forgotten(unknown):
    gone = unknown.id(f"{POD}/{APP}")
    unknown.kernel.map("cloudtaser_main").update(ctypes.c_uint64(gone), ctypes.c_uint32(PID))
    unknown.make(f"{POD}/{SIDE}")
    unknown.remove(f"{POD}/{APP}")

    unknown.makes_cgroup(f"{POD}/{SIDE}")

    assert unknown.main() == {}


def test_a_container_is_known_to_attribution_as_soon_as_it_is_made(unknown):
    unknown.makes_cgroup(f"{POD}/{SIDE}")
    unknown.is_pod(YES, (SIDE, REGULAR))
    made = unknown.id(f"{POD}/{SIDE}")
    unknown.remove(POD)

    found = unknown.attribution.find(made, PID)

    assert (found.namespace, found.pod, found.container) == ("prod", "shop", "name-of-9f8")


def test_a_container_that_has_gone_when_its_cgroup_is_told_of_is_the_pods_still(unknown):
    unknown.is_pod(YES, (SIDE, REGULAR))
    made = unknown.new_cgroup(f"{POD}/{SIDE}")
    unknown.remove(f"{POD}/{SIDE}")
    unknown.workloads.cgroup_made(bytes(made))

    found = unknown.attribution.find(made.id, PID)

    assert (found.namespace, found.pod, found.container) == ("prod", "shop", None)


def test_a_cgroup_of_the_node_is_nobodys(unknown):
    before = unknown.kinds()
    unknown.make("/system.slice")

    assert unknown.makes_cgroup("/system.slice/evil.service") is False
    assert unknown.kinds() == before


def test_a_word_of_the_kernel_that_was_lost_is_made_up_for(node):
    node.make(TOP)
    node.workloads.begin()
    node.take(PodIs(pod=pod(containers=())))
    node.make(POD)
    for _ in range(9):
        node.second()
    assert node.id(POD) not in node.kinds()

    node.second()

    assert node.kinds()[node.id(POD)] == PodKind.YES


def test_a_pod_that_runs_without_a_cgroup_is_looked_for_once_in_a_turn(node, monkeypatch):
    node.make(TOP)
    node.workloads.begin()
    looked = count()
    homes = node.workloads._homes
    look = homes.look
    monkeypatch.setattr(homes, "look", lambda: (next(looked), look()))
    ended = [PodIs(pod=pod(uid=f"{n}", api_uid=f"{n}")) for n in range(5)]

    node.take(*ended)
    assert next(looked) == 0  # `begin` has just looked

    node.second()
    node.make(POD)
    node.take(*ended, PodIs(pod=pod()))
    assert next(looked) == 2
    assert node.kinds()[node.id(POD)] == PodKind.YES


##### Containers that run when their pod becomes known


def test_a_pod_that_says_yes_is_protected_as_it_runs(running):
    running.is_pod()

    member = running.kernel.members()[PID]
    assert (member.pod, member.cgroup) == (running.id(POD), running.id(f"{POD}/{APP}"))
    assert member.flags == abi.MemberFlag.OF_POD
    assert running.lines == [("begins", PID)]
    assert running.main() == {}


def test_it_is_protected_once(running):
    running.is_pod()
    running.is_pod(mode="strict")

    assert running.lines == [("begins", PID)]


@pytest.mark.parametrize("inject", [NO, UNSAID])
def test_a_pod_that_does_not_say_yes_is_let_be(running, inject):
    running.is_pod(inject)

    assert running.kernel.members() == {}
    assert running.told == []


def test_in_a_shared_namespace_the_first_process_of_each_container_is_protected(node):
    node.run(f"{POD}/{PAUSE}", PID, "pause", started=100, in_namespaces=(1,))
    node.run(f"{POD}/{APP}", PID + 1, started=200, in_namespaces=(7,))
    node.run(f"{POD}/{APP}", PID + 2, started=300, in_namespaces=(8,))
    node.run(f"{POD}/{SIDE}", PID + 3, started=400, in_namespaces=(9,))
    node.workloads.begin()

    node.is_pod(YES, (APP, REGULAR), (SIDE, REGULAR), shared_pids=True)

    assert node.kernel.members().keys() == {PID + 1, PID + 3}
    assert node.main() == {node.id(f"{POD}/{APP}"): PID + 1, node.id(f"{POD}/{SIDE}"): PID + 3}


@pytest.mark.parametrize("kind", ContainerKind)
def test_an_ephemeral_container_is_an_outsider(running, kind):
    running.is_pod(YES, (APP, kind))

    assert bool(running.kernel.members()) is (kind is not EPHEMERAL)


@pytest.mark.parametrize(("comm", "expected"), [("pause", set()), ("pauser", {PID}), ("app", {PID})])
def test_what_holds_the_namespaces_is_no_container(node, comm, expected):
    node.run(f"{POD}/{PAUSE}", comm=comm)
    node.workloads.begin()

    node.is_pod(YES, (APP, REGULAR))

    assert node.kernel.members().keys() == expected


def test_a_container_of_a_protected_pod_is_not_left_out_for_its_name(node):
    node.run(f"{POD}/{APP}", comm="pause")
    node.workloads.begin()

    node.is_pod(YES, (APP, REGULAR))

    assert node.kernel.members().keys() == {PID}


def test_a_container_that_turns_out_to_be_ephemeral_is_let_go(running):
    running.is_pod(YES, (SIDE, REGULAR))
    assert running.kernel.members().keys() == {PID}

    running.is_pod(YES, (SIDE, REGULAR), (APP, EPHEMERAL))

    assert running.kernel.members() == {}
    assert running.lines == [("begins", PID), ("ends", PID)]


def test_a_container_that_cannot_be_protected_is_said(running, caplog):
    running.kernel.map("cloudtaser_memb").room = 0

    running.is_pod()
    running.is_pod(mode="strict")

    full = "the map of protected processes is full: raise max-processes above 16384"
    assert lines(caplog) == [f"pod prod/shop: a container is not protected: {full}"]
    assert running.workloads.mistakes == 1


def test_a_container_that_ends_meanwhile_is_not_worth_a_word(running, caplog):
    running.kernel.map("cloudtaser_memb").before_update = lambda: shutil.rmtree(running.proc / str(PID))

    running.is_pod()

    assert lines(caplog) == []
    assert running.kernel.members() == {}


def test_a_pod_that_asks_no_more_is_let_go(running):
    running.is_pod()
    running.is_pod(NO)

    assert running.kernel.members() == {}
    assert running.lines == [("begins", PID), ("ends", PID)]
    running.is_pod(YES)
    assert running.lines[2:] == [("begins", PID)]


def test_a_tree_that_was_let_go_and_taken_again_ends_as_any_other(running):
    for inject in (YES, NO, YES):
        running.is_pod(inject)
    start_ns = 500 * TICK_NS

    running.end()
    record = running.record(abi.Kind.TREE_ENDS, f"{POD}/{APP}", start_ns=start_ns)
    running.workloads.wrapper_gone(record)
    running.second()

    assert [word for word, _ in running.lines] == ["begins", "ends", "begins", "ends"]


def test_a_wrapper_by_its_name_goes_on_in_a_pod_that_says_nothing_but_not_where_it_says_no(running):
    running.protected.protect(PID)
    running.is_pod(UNSAID)
    assert running.kernel.members().keys() == {PID}

    running.is_pod(NO)

    assert running.kernel.members() == {}
    assert running.lines == [("begins", PID), ("ends", PID)]


def test_what_is_let_go_is_that_pods_alone(running):
    running.run(f"{TOP}/pod{OTHER}/{SIDE}", PID + 1)
    for _ in range(10):
        running.second()
    running.is_pod()
    running.is_pod(uid=OTHER, api_uid=OTHER)
    assert running.kernel.members().keys() == {PID, PID + 1}

    running.is_pod(UNSAID)

    assert running.kernel.members().keys() == {PID + 1}


def test_a_pod_that_was_deleted_by_force_stays_protected(running):
    running.is_pod()

    running.take(PodGone(api_uid=UID))
    running.second()

    assert running.kernel.members().keys() == {PID}
    assert running.kinds()[running.id(POD)] == PodKind.YES


##### Containers that the kernel protects as they start


def test_a_wrapper_outside_of_every_pod_is_told_at_once(node):
    node.make("/system.slice")

    assert node.begins("/system.slice", flags=0) is True


def test_a_container_of_a_pod_that_says_yes_is_told_at_once(unknown):
    unknown.is_pod()

    assert unknown.begins() is True
    assert unknown.kernel.members().keys() == {PID}


def test_a_container_whose_status_is_not_known_yet_is_told_at_once(unknown):
    unknown.is_pod(YES, (SIDE, REGULAR))

    assert unknown.begins() is True


def test_a_container_of_a_pod_that_was_deleted_by_force_is_told_at_once(unknown):
    unknown.is_pod()
    unknown.take(PodGone(api_uid=UID))

    assert unknown.begins() is True


def test_a_container_that_went_before_it_was_looked_for_is_told_of_a_pod_that_says_yes(unknown):
    unknown.is_pod()
    record = unknown.record(abi.Kind.TREE_BEGINS, f"{POD}/{APP}")
    unknown.remove(f"{POD}/{APP}")

    assert unknown.workloads.tree_begins(record) is True


@pytest.mark.parametrize(
    ("listed", "comm"), [((APP, EPHEMERAL), b"app"), ((SIDE, REGULAR), b"pause")], ids=["ephemeral", "pause"]
)
def test_what_is_no_container_of_the_pod_is_let_go_without_a_word(unknown, listed, comm):
    unknown.is_pod(YES, listed)

    assert unknown.begins(comm=comm) is False
    assert unknown.kernel.members() == {}
    assert unknown.told == []


@pytest.mark.parametrize(
    ("inject", "flags", "told"),
    [(YES, 0, True), (UNSAID, 0, True), (NO, 0, False), (UNSAID, abi.MemberFlag.OF_POD, False)],
)
def test_what_the_kernel_protected_before_it_knew_better_is_let_go(unknown, inject, flags, told):
    unknown.is_pod(inject)

    assert unknown.begins(flags=flags) is told
    assert bool(unknown.kernel.members()) is told
    assert unknown.told == []


def test_the_end_of_what_was_let_go_is_not_told(unknown):
    unknown.is_pod(UNSAID)
    unknown.begins()

    assert unknown.ends() is False
    unknown.second()

    assert unknown.told == []


##### Containers whose pod is not known yet


def test_nothing_is_told_until_the_pod_is_known(unknown):
    assert unknown.begins() is False
    unknown.second()

    assert unknown.kernel.members().keys() == {PID}
    assert unknown.told == []
    assert unknown.workloads.pending() == 1


def test_a_pod_that_says_yes_is_told_then(unknown):
    unknown.begins()

    unknown.is_pod()

    assert unknown.lines == [("begins", PID)]
    assert unknown.workloads.pending() == 0
    unknown.ends()
    unknown.second()
    assert unknown.lines == [("begins", PID), ("ends", PID)]


@pytest.mark.parametrize("inject", [UNSAID, NO])
def test_a_pod_that_never_asked_is_let_go_without_a_word(unknown, inject):
    unknown.begins()

    unknown.is_pod(inject)
    unknown.ends()
    unknown.second()

    assert unknown.kernel.members() == {}
    assert unknown.told == []


def test_a_pod_whose_cgroup_nobody_has_told_of_is_looked_for(node):
    node.make(TOP)
    node.workloads.begin()
    node.make(f"{POD}/{APP}")

    assert node.begins() is False
    node.is_pod()

    assert node.lines == [("begins", PID)]


@pytest.mark.parametrize("flags", [0, abi.MemberFlag.OF_POD])
def test_a_wrapper_by_its_name_needs_no_pod_to_be_told(unknown, flags):
    assert unknown.begins(flags=flags) is (flags == 0)


def test_what_has_ended_before_it_was_looked_at_is_taken_for_the_pods(unknown):
    record = unknown.record(abi.Kind.TREE_BEGINS, f"{POD}/{APP}")
    assert unknown.workloads.tree_begins(record) is False
    unknown.has(PID, abi.Tree(pid=PID, start_ns=18))
    assert unknown.workloads.tree_begins(record) is False


def test_a_container_that_is_neither_of_the_pod_nor_anybodys_is_not_told_when_the_pod_says_yes(unknown):
    unknown.begins()

    unknown.is_pod(YES, (APP, EPHEMERAL))

    assert unknown.kernel.members() == {}
    assert unknown.told == []


def test_only_what_is_of_the_pod_is_told(unknown):
    elsewhere = f"{TOP}/pod{OTHER}/{SIDE}"
    unknown.make(elsewhere)
    unknown.begins()
    unknown.begins(elsewhere, PID + 1)

    unknown.is_pod()

    assert unknown.lines == [("begins", PID)]
    assert unknown.workloads.pending() == 1


def leave_a_child(node, pid=PID):
    """Let a tree have one more process."""
    wrapper = node.kernel.members()[pid]
    node.has(pid + 100, wrapper.tree, wrapper.pod, wrapper.cgroup, wrapper.flags)


@pytest.mark.parametrize("inject", Inject)
def test_what_a_wrapper_leaves_in_a_pod_that_is_not_known_is_told_or_let_go_with_it(unknown, inject):
    unknown.begins()
    leave_a_child(unknown)
    unknown.ends()
    unknown.second()
    assert (unknown.told, unknown.workloads.pending()) == ([], 1)

    unknown.is_pod(inject)
    unknown.second()
    assert unknown.lines == [("begins", PID)] * (inject is YES)

    unknown.protected.forget(PID + 100)
    unknown.second()
    assert unknown.lines == [("begins", PID), ("ends", PID)] * (inject is YES)


@pytest.mark.parametrize("inject", Inject)
def test_a_tree_that_ends_just_before_its_pod_is_known_is_told_where_the_pod_asks(unknown, inject):
    unknown.begins()
    unknown.ends()

    unknown.is_pod(inject)
    unknown.second()

    assert unknown.lines == [("begins", PID), ("ends", PID)] * (inject is YES)


def test_the_kernels_word_may_come_after_the_pods(unknown):
    unknown.begins()
    unknown.protected.forget(PID)
    unknown.is_pod(UNSAID)

    unknown.ends()
    unknown.second()

    assert unknown.told == []


def test_the_kernels_word_may_come_after_the_tree_was_forgotten(unknown):
    unknown.begins()
    unknown.protected.forget(PID)
    unknown.second()

    unknown.ends()
    unknown.second()

    assert unknown.told == []


def test_what_ends_in_a_pod_that_never_becomes_known_is_forgotten(unknown):
    unknown.begins()
    unknown.begins(pid=PID + 1)
    unknown.ends()

    unknown.second()

    assert unknown.workloads._held.keys() == {TreeId(pid=PID + 1, start_ns=17)}
    assert unknown.workloads._ended == {}
    assert unknown.told == []


##### Where a process lives


@pytest.mark.parametrize(
    ("path", "pod", "cgroup"),
    [
        (f"{POD}/{APP}", POD, f"{POD}/{APP}"),
        (f"{POD}/{APP}/below/it", POD, f"{POD}/{APP}"),
        (f"{POD}/{APP}/kubepods/pod{OTHER}/{SIDE}", POD, f"{POD}/{APP}"),
        (POD, None, POD),
        (TOP, None, TOP),
        ("/system.slice/some.service", None, "/system.slice/some.service"),
        ("/", None, "/"),
    ],
)
def test_the_home_of_a_process_is_that_of_its_container(node, path, pod, cgroup):
    node.run(path)

    assert home_of(node.cgroups, PID) == Home(pod=node.id(pod) if pod else 0, cgroup=node.id(cgroup))


def test_a_process_that_has_gone_has_no_home(node):
    assert home_of(node.cgroups, PID) == Home()


def test_a_cgroup_that_cannot_be_seen_is_no_home(node):
    node.run(f"{POD}/{APP}")
    node.remove("/kubepods")

    assert home_of(node.cgroups, PID) == Home()
