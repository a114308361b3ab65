"""One agent at a time, shared by all tests that need the same mode, and victims for it.

A test says `@agents("enforce")` and takes `agent`; pytest runs those of one mode together, so that the
agent is started once for each mode.
"""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.vectors import Mode
from tests.kernel.agent import Agent
from tests.kernel.build import Programs, build
from tests.kernel.cluster import Cluster
from tests.kernel.keeper import Keeper
from tests.kernel.matrix import Matrix
from tests.kernel.pod_node import Pods
from tests.kernel.victim import Victim

# A virtual machine without hardware support is 20 to 50 times slower than this machine.
_TIMEOUT_S = 600
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder time for slow machines."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


@pytest.fixture(scope="session", autouse=True)
def _adopt_orphans() -> None:
    """Become the parent of a victim's descendants when it ends, so that they are reaped at once."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The C programs."""
    return build(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def matrix() -> Iterator[Matrix]:
    """Collects what the session sees."""
    seen = Matrix()
    yield seen
    if path := os.environ.get("CLOUDTASER_MATRIX_OUT"):
        seen.write(Path(path))


@pytest.fixture(scope="session")
def keeper(request: pytest.FixtureRequest, programs: Programs, tmp_path_factory) -> Iterator[Keeper]:
    """Keeps an agent in the mode that the test is marked with; "off" means none."""
    mode = None if request.param == "off" else Mode(request.param)
    with Keeper(mode, programs, tmp_path_factory.mktemp("agent")) as kept:
        yield kept


@pytest.fixture
def agent(keeper: Keeper) -> Iterator[Agent]:
    """The agent, which must survive the test."""
    running = keeper.agent()
    yield running
    assert running.alive, "\n".join(["the agent ended during the test:", *running.diagnostics[-20:]])


@pytest.fixture
def victim(keeper: Keeper, programs: Programs) -> Iterator[Victim]:
    """A wrapper, protected from its exec on if there is an agent; it must survive the test."""
    if keeper.mode is not None:
        keeper.agent()  # comes first, so that it sees the wrapper begin
    with Victim([programs.wrapper()], execs=programs.nobody()) as running:
        yield running
        running.check()


@pytest.fixture
def cluster(tmp_path: Path, programs: Programs) -> Iterator[Cluster]:
    """An API server and agents of the test's own."""
    with Cluster(tmp_path, programs) as made:
        yield made


@pytest.fixture
def pods(cluster: Cluster, tmp_path: Path, programs: Programs) -> Iterator[Pods]:
    """The node's pods."""
    directory = tmp_path / "pods"
    directory.mkdir()
    with Pods(cluster.api, directory, programs) as made:
        yield made
