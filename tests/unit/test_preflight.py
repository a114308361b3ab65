"""What a node can do, on nodes made up of facts."""

import dataclasses
from typing import Any

import pytest

from agent.btf import HELPERS
from agent.errors import NodeError
from agent.hooks import FOLLOW_PODS, FOLLOW_TREES, HOOKS, NOTE_SYSCALLS, SECOND_LINE, Attach
from agent.preflight import Facts, describe, plan
from agent.vectors import BY_ID, CATALOGUE, Layer

NEWEST = Facts(
    kernel="6.18.0",
    features=frozenset({*HELPERS, "MM_OWNER", "THREAD_STATUS"}),
    hooks=frozenset(HOOKS),
    lsms=("lockdown", "capability", "yama", "bpf"),
    lockdown="none",
    kernel_addresses=True,
    refused={},
)
# No bpf_get_current_task_btf, no bpf_task_pt_regs, no tracepoint of the mmap lock.
OLDEST = dataclasses.replace(
    NEWEST,
    kernel="5.10.0",
    features=frozenset({"MM_OWNER", "THREAD_STATUS"}),
    hooks=frozenset(function for function, hook in HOOKS.items() if not hook.needs),
)
WITHOUT_BPF_LSM = ("lockdown", "capability")


def node(like=NEWEST, **changes: Any):
    return dataclasses.replace(like, **changes)


def covered(of):
    return {each.vector.id for each in of.coverage if each.layer is not None}


def reasons(of):
    return {each.vector.id: each.reason for each in of.coverage if each.layer is None}


def hooks_of(layer):
    return {function for vector in CATALOGUE for function in vector.hooks[layer]}


def test_lsm_comes_first_with_a_second_line():
    chosen = plan(NEWEST, None)

    assert (chosen.layer, chosen.weaker, chosen.optional) == (Layer.LSM, {}, SECOND_LINE[Layer.LSM])
    assert set(chosen.required) == {*FOLLOW_TREES, *hooks_of(Layer.LSM)}
    assert len(set(chosen.required)) == len(chosen.required)
    assert covered(chosen) == BY_ID.keys()
    assert {each.layer for each in chosen.coverage} == {Layer.LSM}


@pytest.mark.parametrize("layer", Layer, ids=lambda layer: layer.name)
def test_the_layer_that_is_asked_for_is_taken(layer):
    chosen = plan(NEWEST, layer)

    assert chosen.layer is layer
    assert set(chosen.required) == {*FOLLOW_TREES, *hooks_of(layer)}
    assert chosen.optional == SECOND_LINE[layer]
    assert chosen.weaker == {better: "not chosen" for better in Layer if better < layer}


BOOT = "boot with bpf in the list of LSMs: lsm=lockdown,capability,bpf"
REFUSED = "this kernel refuses such programs (EPERM)"


@pytest.mark.parametrize(
    ("facts", "expected", "weaker"),
    [
        (node(lsms=WITHOUT_BPF_LSM), Layer.FMOD_RET, {Layer.LSM: BOOT}),
        (
            node(lsms=None),
            Layer.FMOD_RET,
            {Layer.LSM: "the boot list of LSMs is unknown: mount -t securityfs none /sys/kernel/security"},
        ),
        (node(refused={Attach.LSM: "EPERM"}), Layer.FMOD_RET, {Layer.LSM: REFUSED}),
        (
            node(lsms=WITHOUT_BPF_LSM, refused={Attach.FMOD_RET: "EPERM"}),
            Layer.TRACEPOINT,
            {Layer.LSM: BOOT, Layer.FMOD_RET: REFUSED},
        ),
    ],
    ids=["bpf is not in the list", "no list", "refused", "both"],
)
def test_the_next_layer_is_taken_and_why_is_told(facts, expected, weaker):
    chosen = plan(facts, None)

    assert (chosen.layer, chosen.weaker) == (expected, weaker)
    assert covered(chosen) == BY_ID.keys()
    assert [line for line in describe(chosen) if line.startswith("layer ")] == [
        f"layer {layer.name.lower()} is not used: {why}" for layer, why in weaker.items()
    ]


@pytest.mark.parametrize(
    ("facts", "asked", "why"),
    [
        (node(lsms=WITHOUT_BPF_LSM), Layer.LSM, BOOT),
        (node(refused={Attach.FMOD_RET: "EPERM"}), Layer.FMOD_RET, REFUSED),
        (node(refused={Attach.TRACEPOINT: "EACCES"}), Layer.TRACEPOINT, REFUSED.replace("EPERM", "EACCES")),
        (
            OLDEST,
            Layer.TRACEPOINT,
            (
                "this kernel has no get_current_task_btf: use a newer one; "
                "this kernel has no get_current_task_btf, task_pt_regs: use a newer one"
            ),
        ),
        (node(hooks=frozenset(FOLLOW_TREES)), Layer.LSM, "this kernel has no ptrace_access_check: use a "),
    ],
    ids=["bpf is not in the list", "fmod_ret", "tracepoint", "an old kernel", "no such hook"],
)
def test_a_layer_that_is_asked_for_and_refused_says_what_to_change(facts, asked, why):
    with pytest.raises(NodeError) as refusal:
        plan(facts, asked)

    expected = f"layer {asked.name.lower()} cannot be used on this node: {why}"
    assert str(refusal.value).startswith(expected)


def test_a_node_without_any_layer_is_told_why_for_each():
    facts = node(lsms=WITHOUT_BPF_LSM, refused={Attach.FMOD_RET: "EPERM", Attach.TRACEPOINT: "EPERM"})

    with pytest.raises(NodeError) as refusal:
        plan(facts, None)

    assert str(refusal.value) == (
        f"no layer can be used on this node: lsm: {BOOT}; fmod_ret: {REFUSED}; tracepoint: {REFUSED}"
    )


def test_under_lockdown_a_tracepoint_serves_what_needs_no_reads_of_the_kernel():
    chosen = plan(node(lockdown="confidentiality"), Layer.TRACEPOINT)

    assert covered(chosen) == {"process-vm-read", "process-vm-write"}
    assert set(chosen.required) == {*FOLLOW_TREES, "remote_memory"}
    assert set(reasons(chosen).values()) == {
        "lockdown=confidentiality refuses bpf_probe_read_kernel, which the tracepoint layer needs here"
    }


def test_lockdown_changes_nothing_for_lsm():
    assert plan(node(lockdown="confidentiality"), None) == plan(NEWEST, None)


def test_hidden_addresses_cost_what_tells_code_paths_apart():
    chosen = plan(node(kernel_addresses=False), Layer.TRACEPOINT)

    assert covered(chosen) == {"ptrace-attach", "ptrace-traceme", "proc-maps", "proc-stack", "pidfd-getfd"}
    assert set(reasons(chosen).values()) == {
        "kernel addresses are hidden: set sysctl kernel.kptr_restrict to 1"
    }
    assert plan(node(kernel_addresses=False), None).optional == ("wait_for_stop",)


@pytest.mark.parametrize("layer", [Layer.LSM, Layer.FMOD_RET], ids=lambda layer: layer.name)
def test_an_old_kernel_notes_system_calls_and_has_no_tracepoints_behind_it(layer):
    chosen = plan(OLDEST, layer)

    assert set(chosen.required) == {*FOLLOW_TREES, *hooks_of(layer), *NOTE_SYSCALLS}
    assert {HOOKS[function].attach for function in chosen.optional} <= {Attach.FMOD_RET}
    assert covered(chosen) == BY_ID.keys()


@pytest.mark.parametrize("layer", Layer, ids=lambda layer: layer.name)
def test_in_a_cluster_pods_are_followed_on_every_layer(layer):
    alone, in_a_cluster = plan(NEWEST, layer), plan(NEWEST, layer, pods=True)

    assert set(in_a_cluster.required) - set(alone.required) == set(FOLLOW_PODS)
    assert (in_a_cluster.optional, in_a_cluster.coverage) == (alone.optional, alone.coverage)


def test_an_old_kernel_without_32_bit_calls_notes_what_it_has():
    without = {function for function in NOTE_SYSCALLS if function.endswith("_32")}

    assert set(plan(node(OLDEST, hooks=OLDEST.hooks - without), None).required) == {
        *FOLLOW_TREES,
        *hooks_of(Layer.LSM),
        *(set(NOTE_SYSCALLS) - without),
    }


@pytest.mark.parametrize("facts", [NEWEST, OLDEST], ids=["newest", "oldest"])
@pytest.mark.parametrize("refused", Attach, ids=lambda attach: attach.name)
def test_a_plan_needs_nothing_that_was_refused(facts, refused):
    try:
        chosen = plan(node(facts, refused={refused: "EPERM"}), None)
    except NodeError:
        return

    assert refused not in {HOOKS[function].attach for function in (*chosen.required, *chosen.optional)}
