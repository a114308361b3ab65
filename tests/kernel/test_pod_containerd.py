"""The same with containerd, whose shim is the parent of a container's processes."""

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from agent.pods import ContainerKind
from tests.kernel.build import Programs
from tests.kernel.pod_node import APP, Container, PodNode, RunningPod
from tests.kernel.tools import run
from tests.kernel.victim import Victim
from tests.kernel.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.own_agent]

_CONFIGURATION = """\
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/socket"
[ttrpc]
address = "{0}/socket.ttrpc"
"""


class Containerd:
    """A containerd of the test's own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ctr = ["ctr", "--address", str(directory / "socket")]
        configuration = directory / "config.toml"
        configuration.write_text(_CONFIGURATION.format(directory))
        with ExitStack() as undo:
            log = undo.enter_context((directory / "log").open("w"))
            command = ["containerd", "--config", str(configuration)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            undo.callback(self._stop)
            wait_until(lambda: run(*self._ctr, "version").code == 0, "containerd answers")
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def start(self, web: RunningPod, root: Path) -> Container:
        """Run a container of a pod until its victim speaks; the API server is told."""
        id_, pid_file = secrets.token_hex(32), self._directory / "pid"
        cgroup = web.cgroup / id_
        path = f"/kubepods/burstable/{web.cgroup.name}/{id_}"
        flags = ["--rm", "--rootfs", "--cgroup", path, "--pid-file", str(pid_file)]
        victim = Victim([*self._ctr, "run", *flags, str(root), id_, APP])
        wait_until(pid_file.exists, "ctr tells the process")
        execute = [*self._ctr, "tasks", "exec", "--exec-id", "exec", id_]

        def clean_up() -> None:
            run(*self._ctr, "containers", "delete", id_)

        started = Container(
            "app", id_, ContainerKind.REGULAR, victim, int(pid_file.read_text()), cgroup, execute, clean_up
        )
        web.containers.append(started)
        web.tell()
        return started

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)


@pytest.fixture
def node(programs: Programs, tmp_path: Path) -> Iterator[PodNode]:
    """A node for this test."""
    with PodNode(tmp_path, programs) as running:
        yield running


@pytest.fixture
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """A running containerd."""
    with Containerd(tmp_path_factory.mktemp("containerd")) as running:
        yield running


def test_a_container_of_containerd(containerd: Containerd, node: PodNode):
    """It is protected from its exec on, against the host and who comes in by exec, and let go if asked."""
    web = node.pods.add("web", inject="true", sandbox=False)
    app = containerd.start(web, node.pods.root)
    try:
        (begins,) = node.wait_for_tree(web)
        assert begins["target"]["pid"] == app.pid
        assert node.trees(web)[0]["gap_seconds"] == 0
        assert app.execute("/bin/ls", "-l", "/proc/1/ns").code == 0
        for by in (None, app):
            seen = node.attack(app, by=by)
            assert (seen.tally.leaked, seen.tally.killed) == (0, 3)
        assert [event["offender"]["container_id"] for event in seen.events] == [app.id] * 3
        web.say(None)
        assert node.seconds_until(app, stopped=False) < 1
    finally:
        web.stop()
