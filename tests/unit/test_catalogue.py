from pathlib import Path

import pytest

import agent
from agent.hooks import FOLLOW_TREES, HOOKS
from agent.vectors import BY_ID, BY_NUMBER, CATALOGUE, Action, Layer, Mode, Outcome, outcome


@pytest.mark.parametrize("vector", CATALOGUE, ids=lambda vector: vector.id)
def test_a_vector_is_found_and_names_hooks_that_exist(vector):
    assert BY_ID[vector.id] is BY_NUMBER[vector.number] is vector
    assert vector.id.replace("-", "").isalnum()
    assert vector.id == vector.id.lower()
    assert vector.hooks
    for layer, names in vector.hooks.items():
        assert layer in Layer
        assert set(names) <= HOOKS.keys()


def test_ids_and_numbers_are_unique():
    assert len(BY_ID) == len(BY_NUMBER) == len(CATALOGUE)


@pytest.mark.parametrize("hook", HOOKS.values(), ids=lambda hook: hook.function)
def test_a_program_can_be_found_by_name_and_has_a_source(hook):
    # BPF_OBJ_NAME_LEN is 16 with the NUL; a longer name would be cut.
    assert hook.name.startswith("cloudtaser_")
    assert len(hook.name) <= 15
    assert Path(agent.__file__).with_name("bpf_programs").joinpath(hook.source).is_file()


def test_the_hooks_that_follow_trees_exist():
    assert set(FOLLOW_TREES) <= HOOKS.keys()


@pytest.mark.parametrize(
    ("enforce", "mode", "expected"),
    [
        (Action.KILL, Mode.DETECT, Action.DETECT),
        (Action.DENY, Mode.DETECT, Action.DETECT),
        (Action.KILL, Mode.ENFORCE, Action.KILL),
        (Action.DENY, Mode.ENFORCE, Action.DENY),
        (Action.KILL, Mode.STRICT, Action.KILL),
        (Action.DENY, Mode.STRICT, Action.KILL),
    ],
)
def test_a_preset_asks_for_an_action(enforce, mode, expected):
    vector = next(vector for vector in CATALOGUE if vector.enforce is enforce)

    assert vector.action(mode) is expected
    assert vector.targeted is (enforce is Action.KILL)


@pytest.mark.parametrize("layer", Layer)
@pytest.mark.parametrize("action", Action)
def test_only_a_tracepoint_does_less_than_it_is_asked(action, layer):
    expected = Outcome(action)
    if (action, layer) == (Action.DENY, Layer.TRACEPOINT):
        expected = Outcome.DETECTED

    assert outcome(action, layer) is expected
