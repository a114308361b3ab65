"""A pod's words against the configuration's."""

import pytest

from agent.config import load
from agent.pods import Inject, Pod
from agent.selection import select
from agent.vectors import CATALOGUE, Action, Mode

DETECT, DENY, KILL = Action.DETECT, Action.DENY, Action.KILL


def pod(inject=Inject.YES, namespace="prod", mode=None, **actions):
    return Pod(
        uid="uid",
        api_uid="uid",
        namespace=namespace,
        name="shop",
        inject=inject,
        mode=mode,
        actions=tuple(sorted((vector.replace("_", "-"), action) for vector, action in actions.items())),
        shared_pids=False,
        containers=(),
        mistakes=("told elsewhere",),
    )


def config(**flags):
    return load(flags, {}, "node-1")


@pytest.mark.parametrize("mode", Mode)
def test_a_pod_that_says_nothing_gets_what_the_configuration_says(mode):
    asked = config(mode=mode.value, actions={"proc-maps": "kill", "proc-mem": "detect"})

    selected = select(pod(), asked)

    assert selected.actions == {vector.id: asked.action(vector) for vector in CATALOGUE}
    assert selected.inject is Inject.YES
    assert selected.mistakes == ()


# proc-mem is killed by enforce and strict, proc-environ is denied by enforce and killed by strict.
@pytest.mark.parametrize(
    ("flags", "words", "expected"),
    [
        # the pod's mode
        ({}, {"mode": "strict"}, (KILL, KILL)),
        ({}, {"mode": "enforce"}, (KILL, DENY)),
        ({}, {"mode": "detect"}, (KILL, DENY)),
        ({"mode": "strict"}, {"mode": "enforce"}, (KILL, KILL)),
        ({"actions": {"proc-environ": "detect"}}, {"mode": "enforce"}, (KILL, DENY)),
        ({"allow_weaker": True}, {"mode": "detect"}, (DETECT, DETECT)),
        ({"allow_weaker": True, "mode": "strict"}, {"mode": "enforce"}, (KILL, DENY)),
        ({"allow_weaker": True, "actions": {"proc-environ": "kill"}}, {"mode": "enforce"}, (KILL, DENY)),
        # a vector of its own
        ({}, {"proc_environ": "kill"}, (KILL, KILL)),
        ({}, {"proc_environ": "detect", "proc_mem": "deny"}, (KILL, DENY)),
        ({"actions": {"proc-mem": "detect"}}, {"proc_mem": "deny"}, (DENY, DENY)),
        ({"allow_weaker": True}, {"proc_mem": "deny"}, (DENY, DENY)),
        ({"allow_weaker": True}, {"proc_mem": "detect", "proc_environ": "detect"}, (DETECT, DETECT)),
        # both: the vector's own wins
        ({"allow_weaker": True}, {"mode": "strict", "proc_mem": "detect"}, (DETECT, KILL)),
        ({"allow_weaker": True}, {"mode": "detect", "proc_environ": "deny"}, (DETECT, DENY)),
        ({"actions": {"proc-environ": "detect"}}, {"mode": "strict", "proc_environ": "deny"}, (KILL, DENY)),
        # kill is a deny
        ({"reactive_kill": False}, {}, (DENY, DENY)),
        ({"reactive_kill": False}, {"mode": "strict"}, (DENY, DENY)),
        ({"reactive_kill": False}, {"proc_environ": "kill"}, (DENY, DENY)),
        ({"reactive_kill": False, "allow_weaker": True}, {"mode": "strict"}, (DENY, DENY)),
        ({"reactive_kill": False, "allow_weaker": True}, {"proc_mem": "detect"}, (DETECT, DENY)),
        # nothing is blocked, whatever a pod says
        ({"mode": "detect"}, {"mode": "strict"}, (DETECT, DETECT)),
        ({"mode": "detect"}, {"proc_mem": "kill", "proc_environ": "deny"}, (DETECT, DETECT)),
        ({"mode": "detect", "allow_weaker": True}, {"mode": "strict", "proc_mem": "kill"}, (DETECT, DETECT)),
        # what is not understood is left out
        ({}, {"mode": "Strict"}, (KILL, DENY)),
        ({"allow_weaker": True}, {"mode": ""}, (KILL, DENY)),
        ({"allow_weaker": True}, {"mode": "strict", "proc_environ": "none"}, (KILL, KILL)),
        ({"allow_weaker": True}, {"mode": "strict", "proc_environs": "detect"}, (KILL, KILL)),
    ],
)
def test_the_stricter_of_both_holds_unless_weaker_is_allowed(flags, words, expected):
    actions = select(pod(**words), config(**flags)).actions

    assert (actions["proc-mem"], actions["proc-environ"]) == expected
    assert actions.keys() == {vector.id for vector in CATALOGUE}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"mode": "strict", "proc_mem": "kill"}, ()),
        (
            {"mode": "stirct"},
            ("annotation cloudtaser.io/ebpf-mode: unknown mode 'stirct', did you mean 'strict'?",),
        ),
        ({"mode": ""}, ("annotation cloudtaser.io/ebpf-mode: unknown mode ''",)),
        ({"mode": "a\nb"}, (r"annotation cloudtaser.io/ebpf-mode: unknown mode 'a\nb'",)),
        (
            {"proc_mme": "kill", "x\n": "kill"},
            (
                "annotation cloudtaser.io/ebpf-…: unknown vector 'proc-mme', did you mean 'proc-mem'?",
                r"annotation cloudtaser.io/ebpf-…: unknown vector 'x\n'",
            ),
        ),
        (
            {"mode": "x", "proc_mem": "kil", "proc_maps": "7", "proc_stack": "deny"},
            (
                "annotation cloudtaser.io/ebpf-mode: unknown mode 'x'",
                "annotation cloudtaser.io/ebpf-proc-maps: unknown action '7'",
                "annotation cloudtaser.io/ebpf-proc-mem: unknown action 'kil', did you mean 'kill'?",
            ),
        ),
        ({"mode": "\u202e"}, (r"annotation cloudtaser.io/ebpf-mode: unknown mode '\u202e'",)),
    ],
)
def test_what_is_not_understood_is_told_in_one_line_each(words, expected):
    assert select(pod(**words), config()).mistakes == expected


@pytest.mark.parametrize(
    ("patterns", "namespace", "selected"),
    [
        (("*",), "prod", True),
        (("prod",), "prod", True),
        (("prod",), "prod-1", False),
        (("prod-*",), "prod-1", True),
        (("prod-?",), "prod-12", False),
        (("team-[ab]",), "team-b", True),
        (("team-[!ab]",), "team-b", False),
        (("dev", "prod"), "prod", True),
        (("*", "!kube-*"), "kube-system", False),
        (("!kube-*", "*"), "kube-system", False),
        (("!kube-*",), "kube-system", False),
        (("!kube-*",), "prod", True),
        (("!kube-*", "kube-system"), "kube-system", False),
    ],
)
@pytest.mark.parametrize("inject", Inject)
def test_a_pod_is_selected_by_the_name_of_its_namespace(patterns, namespace, selected, inject):
    found = select(pod(inject, namespace), config(namespaces=patterns)).inject

    assert found is (inject if selected or inject is Inject.NO else Inject.UNSAID)
