"""The one struct that tells the programs what to do."""

import pytest

from agent.config import load
from agent.rules import PodRules, Rules
from agent.vectors import CATALOGUE, Action, Layer
from tests.unit.tables import Tables


@pytest.fixture
def kernel():
    return Tables()


@pytest.fixture
def rules(kernel):
    def rules(pods=None, **flags):
        return Rules(kernel.map("cloudtaser_conf"), load(flags, {}, "node-1"), Layer.FMOD_RET, pods)

    return rules


def actions(kernel):
    told = kernel.config().action
    return {vector.id: told[vector.number] for vector in CATALOGUE}


def test_nothing_is_written_before_it_begins(rules, kernel):
    rules()

    assert kernel.tables["cloudtaser_conf"].content == {}


def test_the_programs_are_told_what_is_asked(rules, kernel):
    rules(mode="strict", actions={"proc-mem": "detect"}, events_per_second=7).begin()

    told = kernel.config()
    assert actions(kernel) == {vector.id: Action.KILL for vector in CATALOGUE} | {"proc-mem": Action.DETECT}
    assert (told.rate_burst, told.rate_window_ns, told.layer) == (7, 1_000_000_000, Layer.FMOD_RET)


def test_they_are_armed_when_they_run_and_stay_so(rules, kernel):
    made = rules()
    made.begin()
    assert kernel.config().armed == 0

    made.write()
    assert kernel.config().armed == 1

    made.change(load({"mode": "detect"}, {}, "node-1"))
    assert kernel.config().armed == 1
    assert set(actions(kernel).values()) == {Action.DETECT}


def test_without_kubernetes_they_look_for_no_pods(rules, kernel):
    rules().begin()

    told = kernel.config()
    assert (told.pods, told.hierarchy, told.any_parent, told.shared_pods, told.protect_unknown) == (0,) * 5


@pytest.mark.parametrize("unknown", ["protect", "ignore"])
def test_with_kubernetes_they_are_told_where_and_what_of_the_unknown(rules, kernel, unknown):
    made = rules(PodRules(hierarchy=8), unknown_pods=unknown)
    made.begin()

    told = kernel.config()
    assert (told.pods, told.hierarchy, told.any_parent, told.shared_pods) == (1, 8, 1, 0)
    assert told.protect_unknown == (unknown == "protect")


def test_what_is_learned_of_the_nodes_pods_is_told(rules, kernel):
    made = rules(PodRules(hierarchy=0))
    made.begin()
    made.pods.any_parent = False
    made.pods.shared = True

    made.write()

    assert (kernel.config().any_parent, kernel.config().shared_pods) == (0, 1)
