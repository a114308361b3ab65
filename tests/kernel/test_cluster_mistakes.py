"""What others get wrong: each is one clear line and a count, and everything else works."""

import pytest

from tests.api_server import node, pod
from tests.kernel.cluster import READ, Cluster, ClusterAgent, is_attempt
from tests.kernel.pod_node import Pods
from tests.kernel.waiting import wait_until

pytestmark = pytest.mark.own_agent

_ERRORS = "cloudtaser_ebpf_kubernetes_errors_total"


def _assert_works(cluster: Cluster, agent: ClusterAgent) -> None:
    with cluster.victim() as victim:
        cluster.assert_guarded(victim)
    assert agent.get("/healthz")[0] == 200
    assert agent.lines("Traceback") == []


def _wait_for_count(agent: ClusterAgent, reason: str, least: int) -> None:
    wait_until(lambda: agent.value(_ERRORS, reason=reason) >= least, f"{reason} is counted {least} times")


def test_no_watching(cluster: Cluster):
    """Who may list but not watch is told so; pods that were listed stay as they are."""
    cluster.api.put_pod(pod("web", labels={"cloudtaser.io/inject": "true"}))
    cluster.api.fail(403, None, path="/pods", watch=True)
    agent = cluster.start()
    line = agent.wait_for_line("pods are not watched")

    assert "refuses to watch pods (403): apply the ClusterRole of daemonset.yaml" in line
    wait_until(lambda: agent.readiness()[1].startswith("degraded: "), "the refusal is seen")
    assert agent.readiness()[0] == 200
    assert agent.value("cloudtaser_ebpf_pods", selected="yes") == 1
    _wait_for_count(agent, "watch", 1)
    _assert_works(cluster, agent)
    assert len(agent.lines("pods are not watched")) == 1


def test_no_nodes_and_no_events(cluster: Cluster, pods: Pods):
    """Who may not write Events nor change nodes is told once of each, and protects all the same."""
    api = cluster.api
    api.fail(403, None, path="/events")
    api.fail(403, None, path="/nodes")
    agent = cluster.start()
    target = pods.add("target", inject="true").start()
    agent.wait_for(lambda event: event["type"] == "tree-begins")
    for _ in range(3):
        assert cluster.attack(target.victim, trials=10, target=target.where).killed == 10
    agent.wait_for(is_attempt(READ), 30)

    assert "set pod-events: false" in agent.wait_for_line("Events on pods are not written")
    assert "set node-signals: false" in agent.wait_for_line("label, annotations and taint")
    _wait_for_count(agent, "event", 1)
    _wait_for_count(agent, "node", 1)
    assert agent.readiness() == (200, "ready")
    _assert_works(cluster, agent)
    assert len(agent.lines("(403)")) == 2, agent.diagnostics
    # A refusal is not asked about again and again.
    assert len(cluster.asked("/events")) == 1
    assert len(cluster.asked("/nodes")) == 1


def test_node_that_is_not_there(cluster: Cluster):
    """A node by another name than the agent was told is one line."""
    cluster.api.nodes.clear()
    cluster.api.put_node(node("another"))
    agent = cluster.start()
    agent.wait_for_line("label, annotations and taint of node")
    _wait_for_count(agent, "node", 1)
    _assert_works(cluster, agent)
    assert len(agent.lines("of node")) == 1


def test_pods_that_cannot_be_understood(cluster: Cluster, pods: Pods):
    """Each mistake in a pod is one line and one count, however often it changes; the rest holds."""
    inject, mode = "cloudtaser.io/inject", "cloudtaser.io/ebpf-mode"
    nameless = pod("nameless")
    del nameless["metadata"]["name"]
    stateless = pod("stateless")
    del stateless["status"]
    wrong = {
        "ids": pod("ids", containers={"app": "not-an-id"}),
        "inject": pod("inject", labels={inject: "maybe"}),
        "mode": pod("mode", annotations={mode: "stirct"}),
        "vector": pod("vector", annotations={"cloudtaser.io/ebpf-proc-men": "kill"}),
        "action": pod("action", annotations={"cloudtaser.io/ebpf-proc-mem": "kil"}),
    }
    for each in (nameless, stateless, *wrong.values()):
        cluster.api.put_pod(each)
    asked = pods.add("asked", annotations={mode: "loud"}, inject="true")
    agent = cluster.start()
    _wait_for_count(agent, "pod", 7)

    lines = [line for line in agent.diagnostics if line.startswith("pod ") or "sent a pod" in line]
    assert len(lines) == 7, lines
    assert [line for line in lines if line == "the API server sent a pod without name"]
    for name in wrong:
        assert len([line for line in lines if line.startswith(f"pod default/{name}: ")]) == 1
    assert "did you mean 'strict'?" in agent.lines("pod default/mode: ")[0]
    assert "did you mean 'proc-mem'?" in agent.lines("pod default/vector: ")[0]

    # Once more, and with something that changes, of all of them.
    for each in (stateless, *wrong.values()):
        cluster.api.put_pod(each | {"spec": each["spec"] | {"shareProcessNamespace": True}})
    container = asked.start()
    agent.wait_for(lambda event: event["type"] == "tree-begins")
    tally = cluster.attack(container.victim, target=container.where)
    assert (tally.leaked, tally.killed) == (0, 7)
    assert agent.value(_ERRORS, reason="pod") == 7
    assert agent.readiness() == (200, "ready")
    _assert_works(cluster, agent)
    again = [line for line in agent.diagnostics if line.startswith("pod ") or "sent a pod" in line]
    assert again == lines
