"""The table of programs, the sources that it names, and the rules that both follow."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import agent
from agent.hooks import FOLLOW_PODS, FOLLOW_TREES, HOOKS, NOTE_SYSCALLS, SECOND_LINE, Attach
from agent.vectors import CATALOGUE, Layer

SOURCES = Path(agent.__file__).with_name("bpf_programs")
FILES = sorted(SOURCES.glob("*.bpf.c"))

# How a program is defined: outright, or by the macro of syscall_entry.bpf.c.
DEFINITION = re.compile(r"^(?:int (\w+)\(u64 \*ctx\)|CT_ENTRY\((\w+), )", re.MULTILINE)

# A layer is one way to attach. fentry stands in where a function returns nothing that could be modified.
WAYS = {
    Layer.LSM: {Attach.LSM},
    Layer.FMOD_RET: {Attach.FMOD_RET, Attach.FENTRY},
    Layer.TRACEPOINT: {Attach.TRACEPOINT},
}


def definitions(path):
    return [outright or by_macro for outright, by_macro in DEFINITION.findall(path.read_text())]


def first_comment(path):
    """Return the comment after the line of the licence, each line without its star."""
    found = re.match(r"/\* SPDX-\S+ GPL-2.0-only \*/\n/\*\n(.*?)\*/\n", path.read_text(), re.DOTALL)
    assert found, f"{path.name} begins with no comment"
    return re.sub(r"^ \*", "", found[1], flags=re.MULTILINE)


@pytest.mark.parametrize("hook", HOOKS.values(), ids=lambda hook: hook.function)
def test_a_program_is_found_in_the_kernel_by_its_name(hook):
    assert re.fullmatch(r"cloudtaser_[a-z]{1,4}", hook.name)


@pytest.mark.parametrize("vector", CATALOGUE, ids=lambda vector: vector.id)
@pytest.mark.parametrize("layer", Layer, ids=lambda layer: layer.name)
def test_a_vector_names_programs_of_its_layer(vector, layer):
    functions = vector.hooks[layer]

    assert functions
    assert len(set(functions)) == len(functions)
    assert {HOOKS[function].attach for function in functions} <= WAYS[layer]


def test_every_program_is_used():
    by_vectors = {function for vector in CATALOGUE for hooks in vector.hooks.values() for function in hooks}

    second_line = {function for layer in Layer for function in SECOND_LINE[layer]}

    assert by_vectors | {*FOLLOW_TREES, *FOLLOW_PODS, *second_line, *NOTE_SYSCALLS} == HOOKS.keys()


def test_trees_are_followed_on_every_layer():
    assert {HOOKS[function].attach for function in FOLLOW_TREES} == {Attach.TRACEPOINT}
    assert not any(HOOKS[function].needs for function in FOLLOW_TREES)


def test_pods_are_followed_on_every_layer():
    assert {HOOKS[function].attach for function in FOLLOW_PODS} == {Attach.TRACEPOINT}
    assert not any(HOOKS[function].needs for function in FOLLOW_PODS)


def test_the_second_line_loads_under_lockdown():
    assert not any(HOOKS[function].reads_kernel for layer in Layer for function in SECOND_LINE[layer])


# Programs that attach to the same place in one way must be told apart by their names.
def test_two_programs_on_one_layer_have_two_names():
    judging = [hook for hook in HOOKS.values() if hook.function not in NOTE_SYSCALLS]
    named = {(hook.attach, hook.name) for hook in judging}

    assert len(named) == len(judging)


@pytest.mark.parametrize("hook", HOOKS.values(), ids=lambda hook: hook.function)
def test_a_program_is_defined_once_in_its_source(hook):
    assert definitions(SOURCES / hook.source).count(hook.function) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_program_of_a_source_is_in_the_table(path):
    in_the_table = [hook.function for hook in HOOKS.values() if hook.source == path.name]

    assert sorted(definitions(path)) == sorted(in_the_table)


def test_every_source_has_a_program():
    assert {hook.source for hook in HOOKS.values()} == {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_source_says_what_it_decides_where_how_it_fails_and_what_it_leaves_out(path):
    comment = first_comment(path)

    assert re.match(r" [A-Z]", comment), "a sentence that says what the file is for"
    said = re.findall(r"^ (Policy|Decides, too|Hooks|Fails|Not covered): +\S", comment, re.MULTILINE)
    assert sorted(said) in (
        ["Fails", "Hooks", "Not covered", "Policy"],
        ["Decides, too", "Fails", "Hooks", "Not covered"],
    )


@pytest.mark.parametrize(
    "hook",
    [hook for hook in HOOKS.values() if hook.function not in NOTE_SYSCALLS],
    ids=lambda hook: hook.function,
)
def test_a_source_names_the_places_where_it_attaches(hook):
    _, _, behind = first_comment(SOURCES / hook.source).partition("\n Hooks:")
    listed, _, _ = behind.partition("\n Fails:")

    assert hook.target.removeprefix("security_") in listed


@pytest.mark.parametrize(
    ("attach", "expected"),
    [
        (Attach.TRACEPOINT, "btf_trace_x"),
        (Attach.LSM, "bpf_lsm_x"),
        (Attach.FMOD_RET, "x"),
        (Attach.FENTRY, "x"),
    ],
)
def test_a_place_has_a_type_of_its_own(attach, expected):
    hook = next(hook for hook in HOOKS.values() if hook.attach is attach)

    assert replace(hook, target="x").btf_name == expected
