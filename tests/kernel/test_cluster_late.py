"""An API server that cannot be asked: after ten seconds the agent goes on without it, and says so.

All of these wait at the same time.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.build import Programs
from tests.kernel.cluster import Cluster, ClusterAgent
from tests.kernel.pod_node import Pods
from tests.kernel.waiting import wait_until

pytestmark = pytest.mark.own_agent


def _refused(cluster: Cluster, _: Path) -> Path:
    cluster.api.refuse()
    return cluster.kubeconfig


def _forbidden(cluster: Cluster, _: Path) -> Path:
    cluster.api.fail(403, None)
    return cluster.kubeconfig


def _silent(cluster: Cluster, _: Path) -> Path:
    cluster.api.hold()
    return cluster.kubeconfig


def _missing(_: Cluster, directory: Path) -> Path:
    return directory / "none-such"


def _folder(_: Cluster, directory: Path) -> Path:
    return directory


def _garbage(_: Cluster, directory: Path) -> Path:
    path = directory / "garbage"
    path.write_text("this: [is not, a kubeconfig]\n")
    return path


# What is wrong, and what the agent says of it.
_WRONG: dict[str, tuple[Callable[[Cluster, Path], Path], str]] = {
    "refused": (_refused, "cannot be reached: connection refused"),
    "forbidden": (_forbidden, "refuses to list pods (403): apply the ClusterRole of daemonset.yaml"),
    "silent": (_silent, ""),
    "missing": (_missing, "cannot be read (no such file or directory): correct --kubeconfig"),
    "folder": (_folder, "cannot be read (is a directory): correct --kubeconfig"),
    "garbage": (_garbage, "is not understood"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Late:
    cluster: Cluster
    agent: ClusterAgent


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory, programs: Programs) -> Iterator[dict[str, _Late]]:
    """An agent for each thing that is wrong, and one without an API server that protects unknown pods."""
    started: dict[str, _Late] = {}
    with ExitStack() as undo:

        def begin(name: str, go_wrong: Callable[[Cluster, Path], Path], *flags: str) -> None:
            directory = tmp_path_factory.mktemp(name)
            cluster = undo.enter_context(Cluster(directory, programs))
            agent = cluster.begin(*flags, kubeconfig=go_wrong(cluster, directory))
            started[name] = _Late(cluster=cluster, agent=agent)

        for name, (go_wrong, _) in _WRONG.items():
            begin(name, go_wrong)
        begin("away", _refused, "--unknown-pods", "protect")
        yield started


@pytest.mark.parametrize("wrong", _WRONG)
def test_ready_without_the_api_server(late: dict[str, _Late], wrong: str):
    """The agent is ready and degraded, says why in one line each, and protects by name."""
    cluster, agent = late[wrong].cluster, late[wrong].agent
    reason = _WRONG[wrong][1]
    agent.wait_ready()
    with cluster.victim() as victim:
        cluster.assert_guarded(victim)

    status, text = agent.readiness()
    assert status == 200
    assert text.startswith("degraded: the API server does not tell of pods since it started")
    assert reason in text
    assert agent.get("/healthz")[0] == 200
    assert agent.gauge("kubernetes_connected") == 0
    page = json.loads(agent.get("/status")[1])
    assert (page["kubernetes"]["connected"], page["kubernetes"]["synced"]) == (False, False)
    expected = {"degraded: ": reason}
    if reason:  # else the request is still waited for
        agent.wait_for_line("label, annotations and taint")
        expected |= {"pods are not watched": reason, "label, annotations and taint": ""}
        assert agent.value("cloudtaser_ebpf_kubernetes_errors_total", reason="watch") >= 1
        assert page["last_error"]["message"] in agent.diagnostics
    for beginning, detail in expected.items():
        assert len(agent.lines(beginning)) == 1, agent.diagnostics
        assert detail in agent.lines(beginning)[0]
    assert agent.lines("Traceback") == []


def test_pods_that_nobody_has_told_of(late: dict[str, _Late], tmp_path: Path, programs: Programs):
    """What starts in unknown pods is guarded until the API server is there, and then as the pods ask for."""
    cluster, agent = late["away"].cluster, late["away"].agent
    agent.wait_ready()
    with Pods(cluster.api, tmp_path, programs) as pods:
        asked, silent = (pods.add(name, told=False) for name in ("asked", "silent"))
        containers = [pod.start(told=False) for pod in (asked, silent)]
        for container in containers:
            tally = cluster.attack(container.victim, target=container.where)
            assert (tally.leaked, tally.killed) == (0, 7)
        assert agent.gauge("trees_pending") >= 2
        assert not [event for event in agent.events if event["type"] == "tree-begins"]

        silent.tell()
        asked.say("true")
        cluster.api.listen()
        begun = agent.wait_for(lambda event: event["type"] == "tree-begins")
        assert [event["target"]["pid"] for event in begun] == [containers[0].pid]
        assert asked.owner(containers[0]).items() <= begun[0]["target"].items()
        wait_until(lambda: agent.value("cloudtaser_ebpf_pods", selected="unsaid") == 1, "all are known")
        assert agent.readiness() == (200, "ready")
        leaked = [cluster.attack(each.victim, target=each.where).leaked for each in containers]
        assert leaked == [0, 7]
        assert len(agent.lines("pods are watched again")) == 1
