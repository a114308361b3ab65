"""Wrapper, agent and API server in any order, and what the agent says of itself meanwhile."""

import json
import time

import pytest

from agent import __version__
from agent.status import SCHEMA
from agent.vectors import CATALOGUE
from tests.kernel.cases import LAYER
from tests.kernel.cluster import READ, Cluster, is_attempt
from tests.kernel.pod_node import Container, Pods
from tests.kernel.waiting import wait_until

pytestmark = pytest.mark.own_agent

_AWAY = "degraded: the API server does not tell of pods"


def _assert_guarded(cluster: Cluster, container: Container) -> None:
    tally = cluster.attack(container.victim, target=container.where)
    assert (tally.leaked, tally.killed) == (0, tally.attempts)
    assert container.victim.process.poll() is None


def _assert_open(cluster: Cluster, container: Container) -> None:
    tally = cluster.attack(container.victim, target=container.where)
    assert (tally.leaked, tally.killed) == (tally.attempts, 0)


def test_the_api_server_comes_and_goes(cluster: Cluster):
    """A wrapper by its name is guarded before the API server is there, while it is away, and afterwards."""
    cluster.api.refuse()
    with cluster.victim() as first:
        agent = cluster.begin().listening()
        # The programs are attached before pods are asked for.
        wait_until(
            lambda: agent.readiness()[1].startswith("waiting for the pods"), "only the pods are missing"
        )
        assert agent.readiness()[0] == 503
        cluster.assert_guarded(first)
        with cluster.victim() as second:
            cluster.assert_guarded(second)

        cluster.api.listen()
        agent.wait_ready()
        assert agent.readiness() == (200, "ready")
        with cluster.victim() as third:
            cluster.assert_guarded(third)

        cluster.api.refuse()
        wait_until(lambda: agent.readiness()[1].startswith(_AWAY), "it says that the API server is away")
        assert agent.readiness()[0] == 200
        assert agent.gauge("kubernetes_connected") == 0
        with cluster.victim() as fourth:
            cluster.assert_guarded(fourth)

        cluster.api.listen()
        wait_until(lambda: agent.readiness() == (200, "ready"), "the API server is back")
        assert agent.gauge("kubernetes_connected") == 1
        cluster.assert_guarded(first)


def test_pods_that_were_there_first(cluster: Cluster, pods: Pods):
    """Once the agent is ready, what ran in pods before it is protected as they ask for."""
    asked = pods.add("asked", inject="true", sandbox=False).start()
    silent = pods.add("silent", sandbox=False).start()
    cluster.start()

    _assert_guarded(cluster, asked)
    _assert_open(cluster, silent)


def test_pods_while_the_api_server_is_away(cluster: Cluster, pods: Pods):
    """A container that starts in a known pod meanwhile is guarded from its start; the rest is made up for."""
    known = pods.add("known", inject="true")
    agent = cluster.start()
    assert agent.value("cloudtaser_ebpf_pods", selected="yes") == 1

    cluster.api.refuse()
    wait_until(lambda: agent.readiness()[1].startswith(_AWAY), "it says that the API server is away")
    container = known.start(told=False)
    _assert_guarded(cluster, container)
    known.say("false")
    other = pods.add("other", inject="true", sandbox=False).start()

    cluster.api.listen()
    wait_until(lambda: agent.value("cloudtaser_ebpf_pods", selected="no") == 1, "it has listed again")
    _assert_open(cluster, container)
    _assert_guarded(cluster, other)


def test_readiness(cluster: Cluster):
    """Not ready, with a reason, until all is done; alive all along; and /status tells at any time."""
    api = cluster.api
    api.hold()
    agent = cluster.begin().listening()
    seen: list[str] = []
    while not seen or not seen[-1].startswith("waiting for the pods"):
        status, text = agent.readiness()
        assert (status, agent.get("/healthz")) == (503, (200, "ok\n"))
        assert text
        page = json.loads(agent.get("/status")[1])
        assert (page["schema"], page["readiness"]) in {(SCHEMA, text), (SCHEMA, page["readiness"])}
        seen.append(text)
    # What is waited for now is the first list, and nothing of the node is written before it.
    api.wait_for_requests(1, path="/pods")
    assert cluster.asked("/nodes") == []
    assert "starting" in seen

    api.release()
    agent.wait_ready()
    assert agent.readiness() == (200, "ready")
    api.wait_for_watch()
    api.refuse()
    wait_until(lambda: agent.readiness()[1].startswith(_AWAY), "it says that the API server is away")
    assert (agent.readiness()[0], agent.get("/healthz")) == (200, (200, "ok\n"))


def test_status(cluster: Cluster, pods: Pods):
    """The page for people and their scripts: complete, and without anything that helps an attacker."""
    started = time.time()
    pod = pods.add("web", inject="true")
    agent = cluster.start()
    container = pod.start()
    with cluster.victim() as victim:
        cluster.attack(container.victim, target=container.where, trials=1)
        agent.wait_for(is_attempt(READ))
        # The container's name is the API server's word, which comes after the container.
        wait_until(lambda: '"container": "app"' in agent.get("/status")[1], "the container is known")
        text = agent.get("/status")[1]
    page = json.loads(text)

    assert page["schema"] == SCHEMA
    assert (page["readiness"], page["mode"], page["layer"]) == ("ready", "enforce", LAYER.name.lower())
    assert page["versions"]["agent"] == __version__
    assert {row["vector"] for row in page["vectors"]} == {vector.id for vector in CATALOGUE}
    assert {row["layer"] for row in page["vectors"] if row["effective"]} <= {LAYER.name.lower(), "tracepoint"}
    assert page["counters"]["attempts"][READ.vector]["killed"] >= 1
    assert page["counters"]["protected_trees"] == 2
    assert page["kubernetes"]["connected"] is True
    assert page["kubernetes"]["pods"] == {"yes": 1, "no": 0, "unsaid": 0}
    assert page["config"] == {"refused": None, "reloads": 0, "refusals": 0, "needs_restart": []}
    by_pid = {int(tree["tree"].partition(":")[0]): tree for tree in page["trees"]}
    assert set(by_pid) == {container.pid, victim.pid}
    assert pod.owner(container).items() <= by_pid[container.pid].items()
    assert by_pid[victim.pid]["where"] == "node"
    assert {tree["gap_seconds"] for tree in page["trees"]} == {0.0}
    assert all(tree["protected_since"] >= _utc(started - 1) for tree in page["trees"])
    assert page["last_error"] is None or page["last_error"]["message"] in agent.diagnostics

    for each in (victim.where, container.where):
        assert each.secret not in text
        assert str(each.address) not in text
        assert f"{each.address:x}" not in text


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
