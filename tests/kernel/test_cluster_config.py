"""The configuration's file while the agent runs, changed as Kubernetes changes a ConfigMap."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kernel.attacks import Tally
from tests.kernel.cluster import Cluster, ClusterAgent
from tests.kernel.victim import Victim

pytestmark = pytest.mark.own_agent

_SOON_S = 4.0  # two looks, a second apart, and a machine that has other things to do
_REFUSED = "configuration refused, the one before stays in force"


class _ConfigMap:
    """A mounted ConfigMap: config.yaml -> ..data/config.yaml, ..data -> a folder for each version."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self._directory = directory
        self._version = 0
        directory.mkdir()
        self.file = directory / "config.yaml"
        self.file.symlink_to("..data/config.yaml")
        self.put(**settings)

    def put(self, **settings: Any) -> None:
        """Swap in a file with these settings; _ stands for -."""
        self.put_text(yaml.safe_dump({key.replace("_", "-"): value for key, value in settings.items()}))

    def put_text(self, text: str) -> None:
        self._version += 1
        folder = self._directory / f"..version-{self._version}"
        folder.mkdir()
        (folder / "config.yaml").write_text(text)
        made = self._directory / "..data_tmp"
        made.symlink_to(folder.name)
        made.rename(self._directory / "..data")


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path) -> _ConfigMap:
    """The file, as the agent first sees it."""
    return _ConfigMap(tmp_path / "mounted", mode="enforce", protect_exe=[cluster.wrapper.name])


@pytest.fixture
def agent(cluster: Cluster, config: _ConfigMap) -> ClusterAgent:
    """An agent that follows the file."""
    return cluster.begin("--config", str(config.file), named=False).wait_ready()


def _on_page(agent: ClusterAgent) -> dict[str, Any]:
    page: dict[str, Any] = json.loads(agent.get("/status")[1])
    return page | page.pop("config")


def _outcomes(tally: Tally) -> tuple[int, int]:
    return (tally.leaked, tally.killed)


def test_mode(cluster: Cluster, config: _ConfigMap, agent: ClusterAgent):
    """A new mode holds within seconds for what is protected already; a broken file changes nothing."""
    with cluster.victim() as victim:
        assert _outcomes(cluster.attack(victim)) == (0, 7)

        config.put(mode="detect", protect_exe=[cluster.wrapper.name])
        changed = time.monotonic()
        agent.wait_for_line("configuration taken from")
        assert time.monotonic() - changed < _SOON_S
        assert _outcomes(cluster.attack(victim)) == (7, 0)
        assert _on_page(agent)["mode"] == "detect"

        _break(config, agent)
        assert _outcomes(cluster.attack(victim)) == (7, 0)

        seen = len(agent.diagnostics)
        config.put(mode="enforce", protect_exe=[cluster.wrapper.name])
        agent.wait_for_line("configuration taken from", since=seen)
        assert _outcomes(cluster.attack(victim)) == (0, 7)
        page = _on_page(agent)
        assert (page["mode"], page["refused"], page["reloads"], page["refusals"]) == ("enforce", None, 2, 1)
        assert agent.gauge("config_refused") == 0
    assert agent.readiness() == (200, "ready")


def _break(config: _ConfigMap, agent: ClusterAgent) -> None:
    config.put_text("mode: enforced\nvectors: {none-such: kill}\n")
    agent.wait_for_line(_REFUSED)
    page = _on_page(agent)
    assert "'enforced'" in page["refused"]
    assert "'none-such'" in page["refused"]
    assert page["mode"] == "detect"
    assert agent.gauge("config_refused") == 1
    assert agent.value("cloudtaser_ebpf_config_reloads_total", result="refused") == 1
    assert len(agent.lines(_REFUSED)) == 1


def test_names_and_restarts(cluster: Cluster, config: _ConfigMap, agent: ClusterAgent, tmp_path: Path):
    """A name added is guarded from its exec on; what takes a restart is said, and not done."""
    added = tmp_path / f"{cluster.wrapper.name}x"
    added.write_bytes(cluster.wrapper.read_bytes())
    added.chmod(0o755)
    with Victim([added]) as before:
        assert _outcomes(cluster.attack(before)) == (7, 0)

    config.put(protect_exe=[cluster.wrapper.name, added.name], max_processes=64, ring_bytes=8192)
    said = agent.wait_for_line("restart the agent for: ")
    assert said == "restart the agent for: max-processes, ring-bytes"
    assert len(agent.lines(said)) == 1
    assert _on_page(agent)["needs_restart"] == ["max-processes", "ring-bytes"]
    assert agent.readiness() == (200, "ready")
    with Victim([added]) as after:
        assert _outcomes(cluster.attack(after)) == (0, 7)
        after.check()
