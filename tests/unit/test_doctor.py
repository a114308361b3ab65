"""What a node is said to enforce, on nodes made up of facts."""

import dataclasses

import pytest

from agent.btf import HELPERS
from agent.config import load
from agent.doctor import broken, examine, not_effective
from agent.hooks import HOOKS
from agent.preflight import Facts, plan
from agent.selftest import Result, Trial
from agent.vectors import BY_ID, CATALOGUE, Action, Group, Layer, Outcome

NODE = Facts(
    kernel="6.18.0",
    features=frozenset({*HELPERS, "MM_OWNER", "THREAD_STATUS"}),
    hooks=frozenset(HOOKS),
    lsms=("bpf",),
    lockdown="none",
    kernel_addresses=True,
    refused={},
)
LOCKED = dataclasses.replace(NODE, lockdown="confidentiality")
DENIES = {vector.id for vector in CATALOGUE if vector.enforce is Action.DENY}
TRACEPOINTS_CANNOT = "a tracepoint cannot deny: a better layer would, mode strict kills"


def config(**flags):
    return load(flags, {}, "node-1")


def findings(layer, facts=NODE, **flags):
    return {each.vector.id: each for each in examine(config(**flags), plan(facts, layer))}


def trials(held, *, counted=True):
    return [
        Trial(vector=vector, result=Result.KILLED if vector.id in held else Result.LEAKED, counted=counted)
        for vector in CATALOGUE
    ]


def ids(of):
    return {trial.vector.id for trial in of}


def test_there_is_one_group_for_each_vector():
    assert {vector.group for vector in CATALOGUE} <= set(Group)


@pytest.mark.parametrize("layer", [Layer.LSM, Layer.FMOD_RET], ids=lambda layer: layer.name)
@pytest.mark.parametrize("mode", ["detect", "enforce", "strict"])
def test_a_layer_that_denies_does_what_is_asked(layer, mode):
    found = findings(layer, mode=mode)

    assert {each.asked for each in found.values()} <= set(Action)
    assert all(each.enforced == each.asked and not each.open and not each.reason for each in found.values())
    assert found.keys() == BY_ID.keys()


@pytest.mark.parametrize(
    ("mode", "opened"), [("detect", set()), ("enforce", DENIES), ("strict", set())], ids=str
)
def test_a_tracepoint_leaves_open_what_is_only_to_be_denied(mode, opened):
    found = findings(Layer.TRACEPOINT, mode=mode)

    assert {name for name, each in found.items() if each.open} == opened
    assert {found[name].reason for name in opened} <= {TRACEPOINTS_CANNOT}
    assert {found[name].enforced for name in opened} <= {Outcome.DETECTED}


def test_without_kills_a_tracepoint_leaves_everything_open():
    found = findings(Layer.TRACEPOINT, reactive_kill=False)

    assert {name for name, each in found.items() if each.open} == BY_ID.keys()


def test_a_vector_that_no_program_sees_is_open_and_says_why():
    found = findings(Layer.TRACEPOINT, LOCKED)["proc-mem"]

    assert (found.layer, found.enforced, found.open) == (None, None, True)
    assert found.reason.startswith("lockdown=confidentiality refuses bpf_probe_read_kernel")


def test_a_vector_that_no_program_sees_is_open_even_where_only_a_report_is_asked():
    assert findings(Layer.TRACEPOINT, LOCKED, mode="detect")["proc-mem"].open


def test_an_action_of_its_own_is_what_is_asked():
    found = findings(Layer.TRACEPOINT, actions={"proc-maps": "kill", "proc-mem": "deny"})

    assert (found["proc-maps"].enforced, found["proc-maps"].open) == (Outcome.KILLED, False)
    assert (found["proc-mem"].enforced, found["proc-mem"].reason) == (Outcome.DETECTED, TRACEPOINTS_CANNOT)


@pytest.mark.parametrize(
    ("layer", "facts", "flags", "claimed"),
    [
        (Layer.LSM, NODE, {}, set(BY_ID)),
        (Layer.LSM, NODE, {"mode": "detect"}, set()),
        (Layer.LSM, NODE, {"actions": {"proc-mem": "detect"}}, set(BY_ID) - {"proc-mem"}),
        (Layer.TRACEPOINT, NODE, {}, set(BY_ID) - DENIES),
        (Layer.TRACEPOINT, NODE, {"mode": "strict"}, set(BY_ID)),
        (Layer.TRACEPOINT, LOCKED, {}, {"process-vm-read", "process-vm-write"}),
    ],
)
def test_only_what_is_claimed_can_be_broken(layer, facts, flags, claimed):
    made = plan(facts, layer)

    assert ids(broken(config(**flags), made, trials(held=set()))) == claimed
    assert ids(broken(config(**flags), made, trials(held=set(BY_ID)))) == set()
    assert ids(broken(config(**flags), made, trials(held=set(BY_ID), counted=False))) == claimed


@pytest.mark.parametrize(
    ("flags", "held", "expected"),
    [
        ({}, set(BY_ID), set()),
        ({}, set(BY_ID) - DENIES, DENIES),
        ({}, set(), set(BY_ID)),
        ({"mode": "detect"}, set(), set()),
        ({"actions": {"proc-mem": "detect"}}, set(BY_ID) - {"proc-mem"}, set()),
    ],
)
def test_what_should_be_stopped_and_is_not_is_not_effective(flags, held, expected):
    found = not_effective(config(**flags), plan(NODE, Layer.TRACEPOINT), trials(held))

    assert set(found) == expected
    assert len(set(found)) == len(found)


def test_what_was_not_tried_is_not_effective():
    assert set(not_effective(config(), plan(LOCKED, Layer.TRACEPOINT), [])) == BY_ID.keys()
