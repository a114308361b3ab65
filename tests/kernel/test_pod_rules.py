"""What the operator allows and what pods ask for, under a configuration that is not the default one."""

import json
from collections.abc import Iterator

import pytest

from tests.kernel.build import Programs
from tests.kernel.pod_node import PodNode

pytestmark = [pytest.mark.cluster, pytest.mark.own_agent]

_FLAGS = (
    *("--namespaces", "prod-*", "--namespaces", "!prod-test"),
    *("--allow-weaker", "true", "--unknown-pods", "ignore"),
)


@pytest.fixture(scope="module")
def node(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodNode]:
    """A node where pods of some namespaces may ask, also for less."""
    with PodNode(tmp_path_factory.mktemp("node"), programs, *_FLAGS) as running:
        yield running


def test_an_annotation_may_weaken_where_that_is_allowed(node: PodNode):
    """The pod's own action holds for it, and for no other pod."""
    weaker = {"cloudtaser.io/ebpf-process-vm-read": "detect"}
    weak = node.pods.add("weak", namespace="prod-a", inject="true", annotations=weaker)
    usual = node.pods.add("usual", namespace="prod-a", inject="true")
    open_, guarded = weak.start(), usual.start()
    node.wait_for_tree(weak)
    node.wait_for_tree(usual)

    seen = node.attack(open_)
    assert (seen.tally.leaked, seen.counted) == (3, {"detected": 3})
    seen = node.attack(guarded)
    assert (seen.tally.leaked, seen.tally.killed) == (0, 3)


@pytest.mark.parametrize(
    ("namespace", "asks"), [("prod-a", True), ("prod-test", False), ("shop", False)], ids=str
)
def test_only_some_namespaces_may_ask(node: PodNode, namespace: str, *, asks: bool):
    """In the others "true" counts as nothing said: only what is a wrapper by its name is protected."""
    web = node.pods.add("web", namespace=namespace, inject="true")
    app, wrapper = web.start(), web.start("wrapper", node.wrapper)
    node.wait_for_tree(web, count=1 + asks)

    assert node.attacker(wrapper).run().killed == 1
    assert node.attacker(app).run().leaked == (not asks)


def test_a_pod_that_is_not_known_yet_is_ignored(node: PodNode):
    """It is open until the API server tells of it; then it is protected, and the page says how late."""
    node.api.frozen = True
    try:
        web = node.pods.add("web", namespace="prod-a", inject="true")
        app = web.start()
        assert node.attacker(app).run().leaked == 1
    finally:
        node.api.frozen = False
    assert node.seconds_until(app, stopped=True) < 1
    node.wait_for_tree(web)
    (row,) = node.trees(web)

    assert row["gap_seconds"] > 0
    assert json.loads(node.agent.get("/status")[1])["kubernetes"]["pending_trees"] == 0
