"""What the agent cannot do it says in one line, with an exit code, and nothing stays attached."""

import socket
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.armed import survey
from agent.config import load
from agent.errors import NodeError
from agent.vectors import Layer
from tests.kernel.agent import command, environment
from tests.kernel.keeper import Keeper, agents
from tests.kernel.kernel_objects import all_objects
from tests.kernel.waiting import wait_until

pytestmark = [pytest.mark.own_agent, agents("off")]

_TIMEOUT_S = 120


def _refused_layers() -> list[str]:
    config = load({}, {}, "node-1")
    refused = []
    for layer in Layer:
        try:
            survey(replace(config, layer=layer))
        except NodeError:
            refused.append(layer.name.lower())
    return refused


def _assert_refused(code: int, words: Sequence[str], arguments: list[str]) -> None:
    before = all_objects()
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment()
    )
    complaint = [line for line in done.stderr.splitlines() if line.startswith("cloudtaser-ebpf: ")]

    assert done.returncode == code, done.stderr
    assert len(complaint) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in complaint[0] for word in words), complaint
    assert done.stdout == ""
    wait_until(
        lambda: not {each for each in all_objects() - before if (each.name or "").startswith("cloudtaser")},
        "nothing of ours is in the kernel",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vectors: {proc-memm: kill}\n", ("proc-memm", "proc-mem")),
        ("vectors: {proc-mem: explode}\n", ("proc-mem", "detect, deny, kill")),
        ("protect-exes: [a]\n", ("protect-exes", "protect-exe")),
        ("mode: enforced\n", ("enforced", "enforce")),
        ("mode: [\n", ("config.yaml",)),
        ("protect-pid: [0]\n", ("protect-pid",)),
    ],
)
def test_configuration(keeper: Keeper, tmp_path: Path, text: str, words: Sequence[str]):
    """A mistake in the configuration names the mistake and what was probably meant."""
    assert keeper.mode is None
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    _assert_refused(2, words, command("--config", str(path)))


def test_missing_configuration(keeper: Keeper, tmp_path: Path):
    """A configuration file that is not there is named."""
    assert keeper.mode is None
    _assert_refused(2, ["nowhere.yaml"], command("--config", str(tmp_path / "nowhere.yaml")))


def test_port_in_use(keeper: Keeper, tmp_path: Path):
    """A metrics port that somebody else has is named."""
    assert keeper.mode is None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = command("--metrics-address", address, "--socket", str(tmp_path / "agent.sock"))
        _assert_refused(2, [address], arguments)


def test_pid_that_does_not_exist(keeper: Keeper, tmp_path: Path):
    """A process that is to be protected and is not there is named."""
    assert keeper.mode is None
    most = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="utf-8"))
    options = ["--protect-pid", str(most - 1), "--metrics-address", "127.0.0.1:0"]
    _assert_refused(2, [str(most - 1)], command("--socket", str(tmp_path / "agent.sock"), *options))


def test_not_root(keeper: Keeper, tmp_path: Path):
    """Without root it says that it needs root."""
    assert keeper.mode is None
    options = ["--socket", str(tmp_path / "agent.sock"), "--metrics-address", "127.0.0.1:0"]
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    _assert_refused(3, ["root"], [*unprivileged, *command(*options)])


if _refused_layers():

    @pytest.mark.parametrize("layer", _refused_layers())
    def test_layer_that_the_kernel_refuses(keeper: Keeper, tmp_path: Path, layer: str):
        """A layer that this kernel does not do is not replaced by another in silence."""
        assert keeper.mode is None
        options = ["--socket", str(tmp_path / "agent.sock"), "--metrics-address", "127.0.0.1:0"]
        _assert_refused(3, [layer], [*command(*options), "--layer", layer])
