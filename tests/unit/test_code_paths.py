"""/proc/kallsyms as kernels write it, and what is read from it."""

import pytest

from agent.abi import PATHS, PathClass
from agent.code_paths import CodePath, code_paths
from agent.errors import NodeError

# Debian's 6.12, shortened: the symbols around each function that is looked for, and per-CPU offsets first.
DEBIAN = """\
0000000000000000 A fixed_percpu_data
0000000000001000 A cpu_debug_store
ffffffff81000000 T _stext
ffffffff813ba1e0 T __pfx_seq_read_iter
ffffffff813ba1f0 T seq_read_iter
ffffffff813ba690 T __pfx_seq_read
ffffffff813ba6a0 T seq_read
ffffffff813ba7a0 T __pfx_seq_open_private
ffffffff81430b50 t __pfx_clear_refs_write
ffffffff81430b60 t clear_refs_write
ffffffff81430f20 t __pfx_pagemap_read
ffffffff81430f30 t pagemap_read
ffffffff814313a0 t __pfx_proc_pid_cmdline_read
ffffffff814340a0 t environ_read
ffffffff81434280 t __pfx_mem_rw
ffffffff81434290 t mem_rw
ffffffff814344c0 t mem_write
ffffffff814344e0 t mem_read
ffffffff81434500 t proc_pid_cmdline_read
ffffffff81434810 T proc_setattr
ffffffff81c00000 T _etext
ffffffffc0000000 t init_module\t[virtio]
"""


@pytest.fixture
def kallsyms(tmp_path):
    def kallsyms(text):
        path = tmp_path / "kallsyms"
        path.write_text(text)
        return path

    return kallsyms


def path(start, end, path_class):
    return CodePath(start=start, end=end, path_class=path_class)


def inserted(after, *lines):
    """Return Debian's list with `lines` behind the one that ends like `after`."""
    head, tail = DEBIAN.split(f" {after}\n")
    return "".join([head, f" {after}\n", *(f"{line}\n" for line in lines), tail])


def test_every_function_is_found_up_to_the_next_symbol(kallsyms):
    assert code_paths(kallsyms(DEBIAN)) == (
        path(0xFFFFFFFF813BA1F0, 0xFFFFFFFF813BA690, PathClass.PROC_MAPS),
        path(0xFFFFFFFF813BA6A0, 0xFFFFFFFF813BA7A0, PathClass.PROC_MAPS),
        path(0xFFFFFFFF81430B60, 0xFFFFFFFF81430F20, PathClass.PROC_MAPS),
        path(0xFFFFFFFF81430F30, 0xFFFFFFFF814313A0, PathClass.PROC_MAPS),
        path(0xFFFFFFFF814340A0, 0xFFFFFFFF81434280, PathClass.PROC_ENVIRON),
        path(0xFFFFFFFF81434290, 0xFFFFFFFF814344C0, PathClass.PROC_MEM),
        path(0xFFFFFFFF814344C0, 0xFFFFFFFF814344E0, PathClass.PROC_MEM),
        path(0xFFFFFFFF814344E0, 0xFFFFFFFF81434500, PathClass.PROC_MEM),
        path(0xFFFFFFFF81434500, 0xFFFFFFFF81434810, PathClass.CMDLINE),
    )


@pytest.mark.parametrize(
    ("name", "path_class"),
    [
        ("proc_pid_cmdline_read.cold", PathClass.CMDLINE),
        ("mem_rw.isra.0", PathClass.PROC_MEM),
        ("mem_rw.isra.0.cold", PathClass.PROC_MEM),
        ("environ_read.constprop.0", PathClass.PROC_ENVIRON),
        ("seq_read.llvm.1234567890", PathClass.PROC_MAPS),
    ],
)
def test_a_part_that_a_compiler_split_off_counts_as_its_function(kallsyms, name, path_class):
    text = inserted("_etext", f"ffffffff81c00010 t {name}", "ffffffff81c00020 t other.cold")

    assert path(0xFFFFFFFF81C00010, 0xFFFFFFFF81C00020, path_class) in code_paths(kallsyms(text))


def test_a_function_ends_after_every_alias_of_it(kallsyms):
    text = inserted("environ_read", "ffffffff814340a0 t an_alias", "ffffffff814340a0 t another_alias")

    assert code_paths(kallsyms(text)) == code_paths(kallsyms(DEBIAN))


def test_two_functions_at_one_address_are_both_told(kallsyms):
    text = DEBIAN.replace("ffffffff814344e0 t mem_read", "ffffffff814344c0 t mem_read")

    same = path(0xFFFFFFFF814344C0, 0xFFFFFFFF81434500, PathClass.PROC_MEM)
    assert code_paths(kallsyms(text)).count(same) == 2


@pytest.mark.parametrize(
    "line",
    [
        "ffffffffc0001000 t mem_read\t[evil]",
        "ffffffffc0001000 T seq_read\t[evil]",
        "ffffffffc0001000 t proc_pid_cmdline_read.cold\t[evil]",
        "ffffffff82000000 d mem_rw",
        "ffffffff82000000 r environ_read.fops",
        "ffffffff82000000 t not_mem_rw",
        "ffffffff82000000 t mem_rw_more",
        "ffffffff82000000 t __pfx_environ_read",
        "ffffffff82000000 T seq_read_iterator",
    ],
)
def test_what_is_only_called_alike_is_left_out(kallsyms, line):
    assert code_paths(kallsyms(f"{DEBIAN}{line}\n")) == code_paths(kallsyms(DEBIAN))


def test_a_module_ends_the_last_function_of_the_kernel(kallsyms):
    text = inserted("_etext", "ffffffff81c00010 t mem_rw.cold")

    assert code_paths(kallsyms(text))[-1].end == 0xFFFFFFFFC0000000


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("proc_pid_cmdline_read",), "proc_pid_cmdline_read"),
        (("environ_read",), "environ_read"),
        (("mem_rw", "mem_read", "mem_write"), "mem_rw, mem_read, mem_write"),
    ],
)
def test_a_function_that_must_be_told_apart_is_missed(kallsyms, names, told):
    text = "\n".join(line for line in DEBIAN.splitlines() if line.split()[2] not in names)

    with pytest.raises(NodeError) as refusal:
        code_paths(kallsyms(text))

    assert str(refusal.value) == (
        f"{kallsyms(text)} does not show {told}: set sysctl kernel.kptr_restrict to 1"
    )


@pytest.mark.parametrize("name", ["pagemap_read", "clear_refs_write", "seq_read", "mem_rw", "mem_read"])
def test_a_kernel_built_without_one_of_the_others_is_no_mistake(kallsyms, name):
    text = "\n".join(line for line in DEBIAN.splitlines() if line.split()[2] != name)

    assert len(code_paths(kallsyms(text))) == len(code_paths(kallsyms(DEBIAN))) - 1


def hidden(text):
    return "".join(f"{'0' * 16}{line[16:]}\n" for line in text.splitlines())


@pytest.mark.parametrize("text", ["", "\n", "no symbols at all\n", hidden(DEBIAN)])
def test_a_list_that_shows_no_addresses_is_refused(kallsyms, text):
    with pytest.raises(NodeError, match=r"set sysctl kernel\.kptr_restrict to 1$"):
        code_paths(kallsyms(text))


@pytest.mark.parametrize(("parts", "fits"), [(PATHS, True), (PATHS + 1, False)])
def test_there_is_room_for_so_many_parts(kallsyms, parts, fits):
    colder = parts - len(code_paths(kallsyms(DEBIAN)))
    lines = [f"ffffffff81c000{at:02x} t mem_rw.cold.{at}" for at in range(1, colder + 1)]
    listed = kallsyms(inserted("_etext", *lines))

    if fits:
        assert len(code_paths(listed)) == parts
    else:
        with pytest.raises(NodeError, match=f"in {parts} parts, room is for {PATHS}$"):
            code_paths(listed)
