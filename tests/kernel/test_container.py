"""A real container, made by runc, whose init is a wrapper."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.accounting import account
from tests.kernel.attacks import Attack
from tests.kernel.build import Programs
from tests.kernel.cases import SHORT, Case
from tests.kernel.keeper import Keeper, agents
from tests.kernel.rootfs import make_root
from tests.kernel.tools import run
from tests.kernel.victim import Victim, Whereabouts

pytestmark = agents("off", "enforce")

_APPLETS = ("sh", "cat", "echo", "ls", "ps", "true")


class Container:
    """A bundle and the running container; runc keeps its state beside the bundle."""

    def __init__(self, directory: Path, programs: Programs) -> None:
        self.name = f"ct-test-{os.getpid()}"
        self._state = directory / "state"
        self._bundle = directory / "bundle"
        make_root(self._bundle / "rootfs", _APPLETS, [programs.wrapper()])
        self._write_specification(programs)
        command = [*self._runc(), "run", "--bundle", self._bundle, self.name]
        self.victim = Victim(command)

    def execute(self, *command: str):
        """Run a command in the container, as `kubectl exec` and exec probes do."""
        return run(*self._runc(), "exec", self.name, *command)

    def init(self) -> Whereabouts:
        """Return where the wrapper is, as the host sees it."""
        told = subprocess.check_output([*map(str, self._runc()), "state", self.name], timeout=60)
        where = self.victim.where
        pid = json.loads(told)["pid"]
        return Whereabouts(
            **{**{name: getattr(where, name) for name in where.__slots__}, "pid": pid, "tid": pid}
        )

    def remove(self) -> None:
        """Kill the container and wait until it is gone."""
        run(*self._runc(), "kill", self.name, "KILL")
        self.victim.process.wait(60)
        run(*self._runc(), "delete", "--force", self.name)
        self.victim.stop()

    def _runc(self) -> list[Path | str]:
        return ["runc", "--root", self._state]

    def _write_specification(self, programs: Programs) -> None:
        subprocess.run(["runc", "spec"], cwd=self._bundle, check=True, timeout=60)
        path = self._bundle / "config.json"
        specification = json.loads(path.read_text(encoding="utf-8"))
        specification["process"]["terminal"] = False
        specification["process"]["args"] = [f"/bin/{programs.wrapper().name}"]
        specification["process"]["env"] = ["PATH=/bin"]
        path.write_text(json.dumps(specification), encoding="utf-8")


@pytest.fixture
def container(keeper: Keeper, programs: Programs, tmp_path: Path) -> Iterator[Container]:
    """A running container, under an agent if there is one."""
    if keeper.mode is not None:
        keeper.agent()
    running = Container(tmp_path, programs)
    try:
        yield running
    finally:
        running.remove()


# runc takes ten seconds to start under emulation.
_COMMANDS = (("ls", "-l", "/proc/1/ns"), ("true",), ("ps",), ("cat", "/proc/1/status", "/proc/1/cmdline"))


@pytest.mark.parametrize("command", _COMMANDS[:1] if SHORT else _COMMANDS, ids=" ".join)
def test_runc_exec(keeper: Keeper, container: Container, command: tuple[str, ...]):
    """`runc exec` works in a wrapper's container, and nothing is killed or denied."""
    before = keeper.agent().counts() if keeper.mode else None
    ran = container.execute(*command)

    assert ran.code == 0, ran.output
    if before:
        outcomes = keeper.agent().counts().since(before).outcomes
        assert not any(outcome == "killed" for _, outcome in outcomes), outcomes
    assert container.victim.ask("ping").answer == "pong"


def test_attack_on_the_container(keeper: Keeper, container: Container, programs: Programs):
    """The container's init is guarded against the node's root, and open without an agent."""
    case = Case(vector="process-vm-read")
    attack = Attack(programs=programs, victim=container.victim, case=case, target=container.init(), trials=7)
    if keeper.mode is None:
        assert attack.run().leaked == 7
        return
    seen = account(keeper.agent(), attack)

    assert (seen.tally.leaked, seen.tally.killed) == (0, 7)
    assert container.victim.ask("ping").answer == "pong"


def test_attack_from_inside(keeper: Keeper, container: Container):
    """A program run in the container beside the wrapper gets nothing of its memory either."""
    secret = container.victim.where
    ran = container.execute("sh", "-c", f"dd if=/proc/1/mem bs=1 skip={secret.address} count=32 2>&1")
    if keeper.mode is None:
        assert ran.code != -signal.SIGKILL
        return
    assert secret.secret.encode() not in ran.output
    assert container.victim.ask("ping").answer == "pong"
