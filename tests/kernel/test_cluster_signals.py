"""What the agent writes to the API server: Events on pods, and the node's label, annotations and taint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.node_signals import AGENT_ANNOTATION, LAYER_LABEL, SELFTEST_ANNOTATION, TAINT_EFFECT, TAINT_KEY
from agent.vectors import CATALOGUE
from tests.api_server import NODE, ApiServer, node
from tests.kernel.attacks import Attack, Tally
from tests.kernel.build import Programs
from tests.kernel.cases import LAYER, Case
from tests.kernel.cluster import READ, Cluster, is_attempt
from tests.kernel.pod_node import Container, Pods, RunningPod
from tests.kernel.waiting import wait_until

pytestmark = pytest.mark.own_agent

_FLOOD = 200
_OUR_TAINT = {"key": TAINT_KEY, "effect": TAINT_EFFECT}
_OTHER_TAINT = {"key": "example.com/dedicated", "value": "web", "effect": "NoExecute"}


def _attack_from(programs: Programs, attacker: Container, target: Container, trials: int) -> Tally:
    return Attack(
        programs=programs,
        victim=target.victim,
        case=READ,
        target=target.where,
        program=Path("/bin/attack"),
        before=attacker.exec_command,
        trials=trials,
    ).run()


def _events_on(api: ApiServer, pod: RunningPod) -> list[Mapping[str, Any]]:
    return [each for each in list(api.events.values()) if each["involvedObject"]["uid"] == pod.uid]


def test_events(cluster: Cluster, pods: Pods, programs: Programs):
    """A flood of kills is one Event on the target's pod and one on the offender's, with the count."""
    api = cluster.api
    agent = cluster.start()
    target_pod = pods.add("target", inject="true")
    offender_pod = pods.add("offender", namespace="others", host_pid=True, sandbox=False)
    target = target_pod.start()
    offender = offender_pod.start(privileged=True)
    agent.wait_for(lambda event: event["type"] == "tree-begins")

    tally = _attack_from(programs, offender, target, _FLOOD)
    assert (tally.leaked, tally.killed) == (0, _FLOOD)
    told = agent.wait_for(is_attempt(READ), _FLOOD)
    for event in told:
        assert target_pod.owner(target).items() <= event["target"].items()
        assert offender_pod.owner(offender).items() <= event["offender"].items()
    api.wait_until(lambda: len(api.events) == 2)
    assert agent.stop() == 0  # which writes what is due later

    for pod in (target_pod, offender_pod):
        (stored,) = _events_on(api, pod)
        assert (stored["reason"], stored["type"], stored["count"]) == ("CloudTaserBlocked", "Warning", _FLOOD)
        assert (stored["involvedObject"]["name"], stored["metadata"]["namespace"]) == (
            pod.name,
            pod.namespace,
        )
        assert READ.vector in stored["message"]
        assert target.victim.where.secret not in stored["message"]
    assert len(api.events) == 2
    assert len(cluster.asked("/events")) <= 6
    assert api.errors == []


def test_events_of_the_node(cluster: Cluster, pods: Pods):
    """Who attacks from the node gets no Event of their own, and what is only detected makes none."""
    api = cluster.api
    agent = cluster.start()
    pod = pods.add("target", inject="true")
    target = pod.start()
    agent.wait_for(lambda event: event["type"] == "tree-begins")
    detected = Case(vector="proc-environ", way="environ")

    if LAYER.name == "TRACEPOINT":
        assert cluster.attack(target.victim, detected, trials=1, target=target.where).leaked == 1
        assert agent.wait_for(is_attempt(detected))[0]["outcome"] == "detected"
    assert cluster.attack(target.victim, trials=1, target=target.where).killed == 1
    assert agent.wait_for(is_attempt(READ))[0]["offender"]["where"] == "node"
    api.wait_until(lambda: len(api.events) == 1)
    assert agent.stop() == 0

    assert len(api.events) == 1
    (event,) = _events_on(api, pod)
    assert event["count"] == 1
    assert READ.vector in event["message"]


def test_signals_of_the_node(cluster: Cluster):
    """Label, annotations and taint change once the agent is ready, and all else stays; SIGTERM withdraws."""
    api = cluster.api
    before = api.put_node(
        node(labels={"zone": "a"}, annotations={"owner": "b"}, taints=[_OTHER_TAINT, _OUR_TAINT])
    )
    api.hold(lambda request: request.path.endswith("/pods"))
    agent = cluster.begin().listening()
    wait_until(lambda: agent.readiness()[1].startswith("waiting for the pods"), "only the pods are missing")
    assert api.nodes[NODE] == before
    assert cluster.asked("/nodes") == []

    api.release()
    agent.wait_ready()
    api.wait_until(lambda: api.nodes[NODE] != before)
    signed = api.nodes[NODE]
    annotations = dict(signed["metadata"]["annotations"])
    assert signed["metadata"]["labels"] == {"zone": "a", LAYER_LABEL: LAYER.name.lower()}
    assert annotations.pop(AGENT_ANNOTATION)
    assert annotations.pop(SELFTEST_ANNOTATION).endswith(f"of {len(CATALOGUE)} vectors held")
    assert annotations == {"owner": "b"}
    assert signed["spec"]["taints"] == [_OTHER_TAINT]

    assert agent.stop() == 0
    left = api.nodes[NODE]
    assert (left["metadata"]["labels"], left["metadata"]["annotations"]) == ({"zone": "a"}, {"owner": "b"})
    assert left["spec"]["taints"] == [_OTHER_TAINT]


def test_no_signals(cluster: Cluster):
    """Without node-signals nothing of the node is read or written, from start to end."""
    before = cluster.api.put_node(node(taints=[_OUR_TAINT]))
    agent = cluster.start("--node-signals", "false")
    assert agent.readiness() == (200, "ready")
    assert agent.stop() == 0
    assert cluster.api.nodes[NODE] == before
    assert cluster.asked("/nodes") == []
