"""The first moment of a container: nothing gets out of its program, however early an attacker comes."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernel.build import Programs
from tests.kernel.cases import SHORT
from tests.kernel.pod_node import SETTING, PodNode, RunningPod
from tests.kernel.waiting import PATIENCE_S

pytestmark = pytest.mark.cluster

_STARTS = 3 if SHORT else 30


@pytest.fixture(scope="module")
def node(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodNode]:
    """A node for these tests."""
    with PodNode(tmp_path_factory.mktemp("node"), programs, "--unknown-pods", "protect") as running:
        yield running


@contextmanager
def _attackers(programs: Programs, address: int, told: dict[str, int]) -> Iterator[None]:
    command = [str(programs.race), "start", str(address), SETTING]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as running:
        try:
            yield
            told |= json.loads(running.communicate(timeout=PATIENCE_S)[0])
        finally:
            running.kill()


def _race(node: PodNode, programs: Programs, web: RunningPod) -> dict[str, int]:
    address = _address(web)
    told: dict[str, int] = {}
    with _attackers(programs, address, told):
        for _ in range(_STARTS):
            web.remove(web.start("app", "/bin/race", "hold"))
    print(f"{web.name}: {_STARTS} starts, {told}")
    return told


# The same in each process that runs the program, as it is linked for one place.
def _address(web: RunningPod) -> int:
    container = web.start("app", "/bin/race", "hold")
    web.remove(container)
    return container.where.address


def test_the_race_can_be_won(node: PodNode, programs: Programs):
    """In a pod that does not ask, attackers read the secret while the container starts."""
    web = node.pods.add("open")
    web.begin()
    node.wait_until_known(web)

    assert _race(node, programs, web)["leaked"] > 0


def test_nothing_is_read_from_the_exec_on(node: PodNode, programs: Programs):
    """In a pod that asks, every attacker that comes near is killed and none has read the secret.

    What they find before the exec, in the runtime's own process, are the arguments and environment that the
    pod's specification gives the container; the count is in the output. No secret is there yet.
    """
    web = node.pods.add("guarded", inject="true")
    web.begin()
    told = _race(node, programs, web)

    assert told["leaked"] == 0
    assert told["killed"] >= _STARTS // 2
    begun = [event["target"]["comm"] for event in node.wait_for_tree(web, count=_STARTS + 1)]
    assert begun == ["race"] * (_STARTS + 1)
