"""The end, whatever the API server does at that moment: soon, in order, and nothing stays in the kernel."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.build import Programs
from tests.kernel.cluster import READ, Cluster, is_attempt
from tests.kernel.kernel_objects import KernelObject, all_objects, objects_of
from tests.kernel.pod_node import Pods
from tests.kernel.waiting import wait_until

pytestmark = pytest.mark.own_agent

_SOON_S = 5.0


def _assert_gone(objects: set[KernelObject]) -> None:
    assert objects
    wait_until(lambda: not objects & all_objects(), "the kernel has freed all that it held")


def _hang(cluster: Cluster) -> None:
    cluster.api.frozen = True
    cluster.api.hold()


def _go_away(cluster: Cluster) -> None:
    cluster.api.refuse()


@pytest.mark.parametrize("misbehave", [_hang, _go_away])
def test_stop_with_much_to_say(
    cluster: Cluster, programs: Programs, tmp_path: Path, misbehave: Callable[[Cluster], None]
):
    """SIGTERM ends it though Events are to be written and the node's signals to be withdrawn."""
    agent = cluster.start()
    held = objects_of(agent.pid)
    with Pods(cluster.api, tmp_path, programs) as pods:
        target = pods.add("target", inject="true").start()
        agent.wait_for(lambda event: event["type"] == "tree-begins")
        cluster.api.wait_for_requests(2, path="/nodes")
        misbehave(cluster)
        assert cluster.attack(target.victim, target=target.where).killed == 7
        agent.wait_for(is_attempt(READ), 7)

        asked = time.monotonic()
        assert agent.stop() == 0, agent.diagnostics
        assert time.monotonic() - asked < _SOON_S
    _assert_gone(held)
    assert agent.lines("Traceback") == []
    assert not cluster.socket.exists()


def test_stop_before_it_is_ready(cluster: Cluster):
    """SIGTERM ends it while the first list is waited for."""
    cluster.api.hold()
    agent = cluster.begin().listening()
    wait_until(lambda: agent.readiness()[1].startswith("waiting for the pods"), "only the pods are missing")
    held = objects_of(agent.pid)

    asked = time.monotonic()
    assert agent.stop() == 0, agent.diagnostics
    assert time.monotonic() - asked < _SOON_S
    _assert_gone(held)
    assert agent.lines("Traceback") == []


def test_kill(cluster: Cluster):
    """SIGKILL leaves nothing in the kernel, and the next agent starts over what it left of files."""
    agent = cluster.start()
    held = objects_of(agent.pid)
    agent.process.send_signal(signal.SIGKILL)
    agent.process.wait(_SOON_S)
    _assert_gone(held)
    with cluster.victim() as victim:
        assert cluster.attack(victim).leaked == 7
        cluster.start()
        cluster.assert_guarded(victim)
