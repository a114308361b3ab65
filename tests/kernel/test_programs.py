"""The programs as BCC compiles them and the kernel takes them, on this machine and without an agent."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from agent import preflight
from agent.btf import VMLINUX, Btf, features
from agent.errors import LoadError, NodeError
from agent.hooks import FOLLOW_TREES, HOOKS, SECOND_LINE
from agent.kernel import Kernel
from agent.libbpf import Libbpf
from agent.loader import load
from agent.loading import Loading
from agent.vectors import CATALOGUE, Layer

pytestmark = [
    pytest.mark.own_agent,
    pytest.mark.skipif(os.geteuid() != 0, reason="loading programs takes root"),
    pytest.mark.skipif(not Path(VMLINUX).exists(), reason=f"no {VMLINUX} on this machine"),
]

DEFINES = {"CT_MAX_PROCESSES": 64, "CT_RING_PAGES": 4}
PROBE_READS = {4, 45, 113, 115}  # bpf_probe_read, _str, _kernel, _kernel_str
# The memory of whoever runs a hook changes under it, so it is for no program at all.
READS_OF_USERS = {112, 114}
READ_KERNEL = {"syscall_exit", "undo_stop"}
OVERRIDES = {58}  # bpf_override_return

# Sets r0 to 0 and exits.
NOTHING = bytes.fromhex("b7000000000000009500000000000000")

# BCC stays in a process of its own here, too.
COMPILE = """
import json, sys
from agent.btf import Btf, features
from agent.hooks import HOOKS
from agent.libbpf import Libbpf
from agent.loader import Compiled, helper_calls
hooks = [HOOKS[name] for name in json.loads(sys.argv[1])]
with Btf(Libbpf()) as btf:
    compiled = Compiled(hooks, json.loads(sys.argv[2]), btf)
    calls = {hook.function: sorted(helper_calls(compiled.instructions(hook.function))) for hook in hooks}
print(json.dumps({"calls": calls, "maps": sorted(compiled.maps())}))
"""


@pytest.fixture(scope="module")
def libbpf():
    return Libbpf()


@pytest.fixture(scope="module")
def btf(libbpf):
    with Btf(libbpf) as found:
        yield found


@pytest.fixture(scope="module")
def known(btf):
    """The programs that this kernel has every member for, whatever it lets attach."""
    return sorted(function for function, hook in HOOKS.items() if features(btf) >= set(hook.needs))


@pytest.fixture(scope="module")
def compiled(known):
    """The helpers that each program of every layer calls, and the maps, as compiled for this kernel."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(known), json.dumps(DEFINES)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def functions(libbpf, btf):
    """The programs of the tracepoint layer, or of the best one that this kernel has instead."""
    facts = preflight.examine(libbpf, btf)
    try:
        return preflight.plan(facts, Layer.TRACEPOINT).required
    except NodeError:
        return preflight.plan(facts, None).required


@pytest.fixture
def loaded(functions):
    loading = Loading(functions, DEFINES)
    try:
        made = loading.finish()
    finally:
        loading.abandon()
    yield made
    made.close()


def information(descriptor):
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def name_of(what, descriptor):
    key = information(descriptor)["prog_id" if what == "prog" else "map_id"]
    told = subprocess.run(
        ["bpftool", "-j", what, "show", "id", key], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(told.stdout)["name"]


def links():
    """Return the ids of the programs that this process has attached."""
    held = []
    for path in Path("/proc/self/fdinfo").iterdir():
        try:
            text = path.read_text()
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if "link_id:" in text:
            held.append(information(path.name)["prog_id"])
    return held


def test_the_sources_of_every_layer_compile_together(compiled, known):
    assert sorted(compiled["calls"]) == known
    assert {name[:11] for name in compiled["maps"]} == {"cloudtaser_"}


def test_no_program_that_must_load_under_lockdown_reads_kernel_memory(compiled):
    reading = {name: set(calls) & PROBE_READS for name, calls in compiled["calls"].items()}

    assert {name for name, found in reading.items() if found} <= READ_KERNEL
    assert {hook.function for hook in HOOKS.values() if hook.reads_kernel} == READ_KERNEL


def test_no_program_reads_what_an_attacker_can_change(compiled):
    forbidden = READS_OF_USERS | OVERRIDES

    assert {name: calls for name, calls in compiled["calls"].items() if set(calls) & forbidden} == {}


def test_a_program_that_judges_can_kill(compiled):
    judging = {function for vector in CATALOGUE for hooks in vector.hooks.values() for function in hooks}
    judging |= {function for second_line in SECOND_LINE.values() for function in second_line}
    judging -= {"lsm_task_to_inode", "fmod_task_to_inode"}

    assert {name for name, calls in compiled["calls"].items() if 109 in calls} == (  # bpf_send_signal
        judging & compiled["calls"].keys()
    ) | {"tree_exec"}


def test_every_program_and_map_has_a_name_that_is_ours(loaded, functions):
    names = {function: name_of("prog", descriptor) for function, descriptor in loaded.programs.items()}
    assert names == {function: HOOKS[function].name for function in functions}
    for name, descriptor in loaded.maps.items():
        assert name_of("map", descriptor) == name


def test_every_map_comes_with_the_programs(loaded, compiled):
    descriptors = [*loaded.maps.values(), *loaded.programs.values()]

    assert sorted(loaded.maps) == compiled["maps"]
    assert len(set(descriptors)) == len(descriptors)


def test_what_is_attached_is_gone_with_a_word(libbpf, loaded, functions):
    kernel = Kernel(libbpf, loaded)
    before = Counter(links())

    assert kernel.attach(functions) == ()
    assert Counter(links()) - before == Counter(
        information(descriptor)["prog_id"] for descriptor in loaded.programs.values()
    )
    assert kernel.programs_loaded() == len(functions)

    kernel.detach()
    assert Counter(links()) == before
    kernel.close()


@pytest.mark.parametrize("at", [0, 1, -1], ids=["first", "second", "last"])
def test_all_required_programs_attach_or_none(libbpf, loaded, functions, at):
    broken = functions[at]
    os.close(loaded.programs[broken])
    loaded.programs[broken] = os.open(os.devnull, os.O_RDONLY)  # no program: it cannot attach
    kernel = Kernel(libbpf, loaded)

    with pytest.raises(LoadError) as refusal:
        kernel.attach(functions)

    target = HOOKS[broken].target
    assert str(refusal.value) == f"{broken} does not attach to {target}: {os.strerror(22)}"
    assert (kernel.programs_loaded(), links()) == (0, [])
    kernel.close()


def test_an_optional_program_that_does_not_attach_is_named(libbpf, loaded, functions):
    optional = functions[-1]
    os.close(loaded.programs[optional])
    loaded.programs[optional] = os.open(os.devnull, os.O_RDONLY)
    kernel = Kernel(libbpf, loaded)

    assert kernel.attach(functions[:-1], [optional]) == (optional,)
    assert kernel.programs_loaded() == len(functions) - 1
    kernel.close()
    assert links() == []


# A kernel may refuse the other ways to attach altogether.
def test_a_program_without_its_place_is_one_clear_refusal(libbpf, btf):
    nowhere = dataclasses.replace(HOOKS["tree_fork"], target="no_such_place")

    with pytest.raises(LoadError) as refusal:
        load(libbpf, btf, nowhere, NOTHING)

    assert "\n" not in str(refusal.value)
    assert "tree_fork" in str(refusal.value)
    assert "no_such_place" in str(refusal.value)


def test_a_program_that_is_no_program_is_refused_with_the_verifiers_words(libbpf, btf):
    with pytest.raises(LoadError, match=r"^the kernel refuses tree_fork: EACCES: .* \| R0 !read_ok \| "):
        load(libbpf, btf, HOOKS["tree_fork"], NOTHING[8:])


def test_a_loader_that_fails_is_told_with_its_last_words():
    loading = Loading(["no_such_function"], DEFINES)
    try:
        with pytest.raises(LoadError, match=r"^the loader died with status 1: .*'no_such_function'$"):
            loading.finish()
    finally:
        loading.abandon()


def test_trees_can_be_followed_alone():
    loading = Loading(FOLLOW_TREES, DEFINES)
    try:
        made = loading.finish()
    finally:
        loading.abandon()

    assert set(made.programs) == set(FOLLOW_TREES)
    made.close()
