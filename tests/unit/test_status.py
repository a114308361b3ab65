"""What /status tells of trees, vectors, counters, the configuration's file and the last complaint."""

import ctypes
import json
import logging

import pytest

import agent
from agent import abi, status
from agent.config import load
from agent.events import AttemptKey, Clocks, TreeId
from agent.preflight import Coverage, Plan
from agent.reload import ReloadState
from agent.selftest import Result, Trial
from agent.vectors import BY_ID, CATALOGUE, Layer, Outcome
from tests.unit.tables import PID, Tables

SECOND = 1_000_000_000
CLOCKS = Clocks(monotonic_offset_ns=1_000 * SECOND, boottime_offset_ns=990 * SECOND)


class Counting(Tables):
    """A kernel that is its maps, and counted something."""

    def attempts(self, *, selftest=False):
        assert not selftest
        return {
            AttemptKey(vector=vector, layer=layer, outcome=outcome): vector.number
            for vector in CATALOGUE
            for layer in (Layer.LSM, Layer.TRACEPOINT)
            for outcome in (Outcome.DENIED, Outcome.KILLED)
        }

    def losses(self):
        return dict.fromkeys(abi.Loss, 3)

    def programs_loaded(self):
        return 23

    def runs_skipped(self):
        return 3


@pytest.fixture
def kernel():
    return Counting()


@pytest.fixture
def joins(kernel):
    """Let a process be a member of a tree that began 17 ns after the boot."""

    def joins(pid, tree_pid, **member):
        tree = abi.Tree(pid=tree_pid, start_ns=17)
        kernel.map("cloudtaser_memb").update(ctypes.c_uint32(pid), abi.Member(tree=tree, **member))

    return joins


def record(kind, pid, at_ns):
    size = ctypes.sizeof(abi.TreeRecord)
    header = abi.Header(kind=kind, size=size, ktime_ns=at_ns)
    return bytes(abi.TreeRecord(header=header, tree=abi.Tree(pid=pid, start_ns=17)))


BEGINS, ENDS = abi.Kind.TREE_BEGINS, abi.Kind.TREE_ENDS


def attribute(cgroup_id, pid):
    assert pid == 0
    pod = f"pod-{cgroup_id}" if cgroup_id else None
    return {"where": "pod" if pod else "node", "namespace": pod and "prod", "pod": pod}


##### Trees


def test_a_tree_has_a_row_with_all_its_processes(kernel, joins):
    trees = status.Trees()
    trees.note(record(BEGINS, PID, 7 * SECOND))
    joins(PID + 1, PID, cgroup=4, start_ns=9 * SECOND, comm=b"child")
    joins(PID, PID, cgroup=4, start_ns=17 * SECOND, comm=b"caf\xff")

    assert trees.as_list(kernel, attribute, CLOCKS) == [
        {
            "where": "pod",
            "namespace": "prod",
            "pod": "pod-4",
            "tree": f"{PID}:17",
            "comm": "caf\N{REPLACEMENT CHARACTER}",
            "processes": 2,
            "protected_since": "1970-01-01T00:16:47.000Z",
            "gap_seconds": 0.0,
        }
    ]


# It started 17 s after the boot, which is 1007 s after 1970 by its clock.
@pytest.mark.parametrize(
    ("slack_ns", "since_s", "gap"),
    [(0, 7.0, 0.0), (0, 9.0, 0.0), (1, 9.0004, 2.0), (1, 9.5, 2.5), (1, 6.0, 0.0)],
)
def test_the_gap_is_for_how_long_it_ran_unprotected(kernel, joins, slack_ns, since_s, gap):
    trees = status.Trees()
    trees.note(record(BEGINS, PID, int(since_s * SECOND)))
    joins(PID, PID, start_ns=17 * SECOND, slack_ns=slack_ns)

    assert [row["gap_seconds"] for row in trees.as_list(kernel, attribute, CLOCKS)] == [gap]


def test_a_tree_that_nobody_announced_is_listed_without_a_time(kernel, joins):
    joins(PID, PID, comm=b"app")

    row = status.Trees().as_list(kernel, attribute, CLOCKS)[0]

    assert (row["comm"], row["protected_since"], row["gap_seconds"]) == ("app", None, None)


def test_a_tree_whose_wrapper_has_gone_is_listed_without_its_name(kernel, joins):
    trees = status.Trees()
    trees.note(record(BEGINS, PID, 7 * SECOND))
    joins(PID + 1, PID, comm=b"child")

    row = trees.as_list(kernel, attribute, CLOCKS)[0]

    assert (row["tree"], row["comm"], row["processes"], row["protected_since"]) == (f"{PID}:17", "", 1, None)


def test_trees_are_in_the_order_of_their_pods(kernel, joins):
    for pid, cgroup in ((PID, 5), (PID + 1, 0), (PID + 2, 4), (PID + 3, 5)):
        joins(pid, pid, cgroup=cgroup)

    rows = status.Trees().as_list(kernel, attribute, CLOCKS)

    assert [(row["pod"], row["tree"]) for row in rows] == [
        (None, f"{PID + 1}:17"),
        ("pod-4", f"{PID + 2}:17"),
        ("pod-5", f"{PID}:17"),
        ("pod-5", f"{PID + 3}:17"),
    ]


def test_only_what_trees_begin_with_is_noted_and_no_longer_than_they_last():
    trees = status.Trees()
    trees.note(b"garbage")
    trees.note(record(BEGINS, PID, 7))
    trees.note(record(BEGINS, PID + 1, 7))
    trees.note(record(ENDS, PID, 8))
    trees.note(record(ENDS, PID + 2, 8))

    assert trees._since_ns == {TreeId(pid=PID + 1, start_ns=17): 7}


def test_what_is_noted_is_bounded(monkeypatch):
    monkeypatch.setattr(status, "_TREES", 3)
    trees = status.Trees()
    for pid in range(5):
        trees.note(record(BEGINS, pid, 7))

    assert [tree.pid for tree in trees._since_ns] == [2, 3, 4]


##### The rest


def test_a_vector_says_what_is_asked_who_watches_and_what_the_selftest_saw():
    mem, environ, maps = (BY_ID[each] for each in ("proc-mem", "proc-environ", "proc-maps"))
    plan = Plan(
        layer=Layer.LSM,
        required=(),
        optional=(),
        coverage=(
            Coverage(vector=mem, layer=Layer.LSM, reason=""),
            Coverage(vector=environ, layer=Layer.TRACEPOINT, reason=""),
            Coverage(vector=maps, layer=None, reason="boot with lsm=…,bpf"),
        ),
        weaker={},
    )
    trials = (
        Trial(vector=mem, result=Result.KILLED, counted=True),
        Trial(vector=environ, result=Result.LEAKED, counted=True),
    )
    keys = ("vector", "layer", "asked", "selftest", "effective", "reason")

    rows = status.vectors(load({}, {}, "node-1"), plan, trials)

    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("proc-mem", "lsm", "kill", "killed", True, None),
        ("proc-environ", "tracepoint", "deny", "leaked", False, None),
        ("proc-maps", None, "deny", None, False, "boot with lsm=…,bpf"),
    ]


def test_counters_are_the_kernels_by_vector_and_outcome(kernel, joins):
    joins(PID, PID)
    joins(PID + 1, PID)

    told = status.counters(kernel)

    assert told["attempts"] == {
        vector.id: {"detected": 0, "denied": 2 * vector.number, "killed": 2 * vector.number}
        for vector in CATALOGUE
    }
    assert told["lost"] == {"rate_limited": 3, "ring_full": 3, "members_full": 3}
    assert (told["protected_processes"], told["protected_trees"], told["programs_loaded"]) == (2, 1, 23)
    json.dumps(told)


@pytest.mark.parametrize(("refused", "told"), [("", None), ("mode: unknown", "mode: unknown")])
def test_what_came_of_the_file_is_told(refused, told):
    state = ReloadState(refused=refused, reloads=2, refusals=3, needs_restart=("layer",))

    assert status.config_file(state) == {
        "refused": told,
        "reloads": 2,
        "refusals": 3,
        "needs_restart": ["layer"],
    }


def test_what_runs_here_is_told():
    told = status.versions("6.1.0-test")

    assert told.keys() == {"agent", "kernel", "python"}
    assert (told["agent"], told["kernel"]) == (agent.__version__, "6.1.0-test")


def test_the_time_is_told_as_events_tell_it():
    assert status.now(lambda: 1_700_000_000.1239) == "2023-11-14T22:13:20.123Z"


@pytest.fixture
def log():
    return logging.getLogger("agent.test")


def test_the_last_complaint_is_kept(log):
    with status.LastError() as last_error:
        assert last_error.as_dict() is None
        log.warning("the %s", "first")
        log.error("the %s", "second")
        log.info("nothing to complain of")

    told = last_error.as_dict()
    assert told is not None
    assert told["message"] == "the second"
    assert told["time"].endswith("Z")


def test_it_does_not_listen_any_more_when_it_is_over(log):
    with status.LastError() as last_error:
        pass
    log.warning("later")

    assert last_error.as_dict() is None
