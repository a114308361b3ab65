"""What the programs are told of this node, before they are loaded."""

import logging
from pathlib import Path

import pytest

from agent.armed import PodsOn, node_root
from agent.config import load
from agent.hierarchy import Hierarchy
from agent.protected import Home


@pytest.mark.parametrize(
    ("controller", "number", "defines"), [(None, 0, {}), ("memory", 4, {"CT_PODS_ON_MEMORY": 1})]
)
def test_pods_are_told_apart_in_one_hierarchy(controller, number, defines):
    found = Hierarchy(mount=Path("/sys/fs/cgroup"), controller=controller, number=number)
    pods = PodsOn(hierarchy=found, home_of=lambda _pid: Home())

    assert pods.defines() == defines
    assert (pods.rules().hierarchy, pods.rules().any_parent) == (number, True)


@pytest.mark.parametrize(
    ("exempt", "told"),
    [
        ((), []),
        (("/usr/bin/gdb",), ["/usr/bin/gdb is looked for among the agent's own files, not the node's"]),
    ],
)
def test_files_are_the_nodes_where_it_lets_itself_be_seen(tmp_path, caplog, exempt, told):
    config = load({"exempt_exe": list(exempt)}, {}, "node-1")
    with caplog.at_level(logging.WARNING):
        assert node_root(config, tmp_path) == tmp_path
        assert caplog.records == []

        assert node_root(config, tmp_path / "denied") == Path("/")
    assert [record.getMessage().partition("so ")[2] for record in caplog.records] == told
