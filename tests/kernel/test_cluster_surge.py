"""Two agents on one node, as a rolling update with maxSurge has them: harmless, and no gap between them."""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from agent import control
from agent.node_signals import AGENT_ANNOTATION, LAYER_LABEL
from tests.api_server import NODE, ApiServer
from tests.kernel.attacks import Attack, Tally
from tests.kernel.build import Programs
from tests.kernel.cases import LAYER, Case
from tests.kernel.cluster import READ, Cluster, ClusterAgent, is_attempt
from tests.kernel.kernel_objects import all_objects, objects_of
from tests.kernel.waiting import wait_until

pytestmark = pytest.mark.own_agent

_TRIALS = 101
_MANY = 10_007  # a few seconds
_MEM = Case(vector="proc-mem", way="mem")
_CASES = (
    READ,
    _MEM,
    Case(vector="ptrace-attach", way="attach"),
    Case(vector="ptrace-attach", way="seize"),
    Case(vector="pidfd-getfd"),
)


class _Pair:
    """The agent that was there, and the one that is to replace it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.old = cluster.begin_as("ct-old").wait_ready()
        self.new = cluster.begin_as("ct-new").wait_ready()

    @property
    def both(self) -> tuple[ClusterAgent, ClusterAgent]:
        return (self.old, self.new)

    def counted(self, vector: str) -> dict[str, int]:
        """Return what both kernels' sides counted, by outcome."""
        total: dict[str, int] = {}
        for agent in self.both:
            for outcome, count in agent.counts().of(vector).items():
                total[outcome] = total.get(outcome, 0) + count
        return total


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, programs: Programs) -> Iterator[_Pair]:
    """Two agents side by side, which no test may break."""
    with Cluster(tmp_path_factory.mktemp("pair"), programs) as cluster:
        yield _Pair(cluster)


@pytest.fixture
def passing(tmp_path: Path, programs: Programs) -> Iterator[_Pair]:
    """Two agents of the test's own."""
    with Cluster(tmp_path, programs) as cluster:
        yield _Pair(cluster)


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_one_attack_is_one_kill(pair: _Pair, programs: Programs, case: Case):
    """Both watch, and each attempt is killed, counted and told once, by one of them."""
    before = pair.counted(case.vector)
    told = _told(pair.both, case)
    with pair.cluster.victim() as victim:
        tally = Attack(programs=programs, victim=victim, case=case, trials=_TRIALS).run()

    assert (tally.leaked, tally.killed, tally.other) == (0, _TRIALS, 0)
    after = pair.counted(case.vector)
    assert {outcome: count - before.get(outcome, 0) for outcome, count in after.items()} == {
        "killed": _TRIALS,
        "denied": 0,
        "detected": 0,
    }

    wait_until(lambda: _told(pair.both, case) - told >= _TRIALS, "all attempts are told")
    assert _told(pair.both, case) - told == _TRIALS


def test_both_know_the_wrapper(pair: _Pair):
    """A wrapper that starts while there are two is a tree of both."""
    seen = [len(agent.events) for agent in pair.both]
    with pair.cluster.victim() as victim:
        pid = victim.pid
        for agent, first in zip(pair.both, seen, strict=True):
            agent.wait_for(
                lambda event: event["type"] == "tree-begins" and event["target"]["pid"] == pid, since=first
            )


@pytest.mark.parametrize(("stops", "case"), [("old", READ), ("new", _MEM)], ids=str)
def test_no_gap_in_the_hand_over(passing: _Pair, programs: Programs, stops: str, case: Case):
    """An attacker that never pauses gets nothing while one of the two stops, and the other goes on."""
    cluster = passing.cluster
    going, staying = passing.both if stops == "old" else (passing.new, passing.old)
    held = objects_of(going.pid)
    with cluster.victim() as victim:
        command = Attack(programs=programs, victim=victim, case=case, trials=_MANY).command()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacker:
            wait_until(lambda: _told(passing.both, case) > 0, "the attack is under way")
            assert going.stop() == 0
            assert attacker.poll() is None, "the attack was over before the agent was"
            tally = Tally.parse(attacker.communicate(timeout=60)[0])
        assert (tally.leaked, tally.killed, tally.other) == (0, _MANY, 0)
        assert held
        wait_until(lambda: not held & all_objects(), "the kernel has freed all that it held")
        # It has told all that it has counted before it ended.
        assert _told([going], case) + staying.counts().of(case.vector)["killed"] == _MANY
        cluster.assert_guarded(victim)
    with cluster.victim() as later:
        cluster.assert_guarded(later)
    assert staying.readiness() == (200, "ready")


def test_what_is_handed_over(passing: _Pair):
    """Socket and signals of the node are the newer agent's, and the older one leaves them alone."""
    path, api = passing.cluster.socket, passing.cluster.api
    inode = path.stat().st_ino
    api.wait_until(lambda: _signed_by(api) == "ct-new")
    assert passing.old.stop() == 0

    assert path.stat().st_ino == inode
    assert control.request(path, "status", 5)["status"]["ready"] is True
    assert _signed_by(api) == "ct-new"
    assert api.nodes[NODE]["metadata"]["labels"][LAYER_LABEL] == LAYER.name.lower()

    assert passing.new.stop() == 0
    assert not path.exists()
    assert _signed_by(api) is None
    assert LAYER_LABEL not in api.nodes[NODE]["metadata"]["labels"]


def test_the_old_one_is_killed(passing: _Pair):
    """An old agent that is killed leaves nothing behind, and the new one goes on."""
    held = objects_of(passing.old.pid)
    with passing.cluster.victim() as victim:
        passing.old.process.send_signal(signal.SIGKILL)
        passing.old.process.wait(5)
        assert held
        wait_until(lambda: not held & all_objects(), "the kernel has freed all that it held")
        passing.cluster.assert_guarded(victim)


def _signed_by(api: ApiServer) -> str | None:
    owner: str | None = api.nodes[NODE]["metadata"].get("annotations", {}).get(AGENT_ANNOTATION)
    return owner


def _told(agents: Sequence[ClusterAgent], case: Case) -> int:
    return sum(len(list(filter(is_attempt(case), agent.events.copy()))) for agent in agents)
