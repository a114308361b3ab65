"""How the facts about a node are found: by asking BTF, the kernel and the files below a root."""

import errno
import os
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.btf import HELPERS, Btf
from agent.errors import NodeError
from agent.hooks import HOOKS, Attach
from agent.preflight import Facts, examine, target_id


class Types(Btf):
    """A kernel that has the named types and members of every struct."""

    def __init__(self, missing=()):
        self.missing, self.ids = missing, {}

    def find(self, name, _kind):
        return None if name in self.missing else self.ids.setdefault(name, len(self.ids) + 1)

    def offset(self, _struct, path):
        return None if path in self.missing else 0

    def enumerators(self, _enum):
        return {f"BPF_FUNC_{name}": 1 for name in HELPERS if name not in self.missing}


class Loads:
    """libbpf that refuses what it is told to and remembers what it was asked."""

    def __init__(self, refused: Mapping[Attach, int] | None = None):
        self.refused = refused or {}
        self.asked: list[tuple[bytes, int, int]] = []

    def bpf_prog_load(self, program_type, name, _licence, _code, count, options):
        attach_type = options._obj.expected_attach_type
        self.asked.append((name, count, options._obj.attach_btf_id))
        if error := self.refused.get(Attach((program_type, attach_type))):
            return -error
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


@pytest.fixture
def root(tmp_path):
    for name, text in {
        "sys/kernel/security/lsm": "lockdown,capability,bpf",
        "sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
        "proc/kallsyms": "0000000000000000 A first\nffffffff81000000 T _stext\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def write(path, text):
    path.unlink()
    if text is not None:
        path.write_text(text)


@contextmanager
def as_nobody():
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="looking at a node takes root")


def open_descriptors():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def facts_of(root, libbpf: Any = None, missing=()):
    if libbpf is None:
        libbpf = Loads()
    return examine(libbpf, Types(missing), root)


@needs_root
def test_the_facts_are_found(root):
    libbpf = Loads({Attach.LSM: errno.EPERM, Attach.FENTRY: 9999})
    descriptors = open_descriptors()

    facts = facts_of(root, libbpf)

    assert facts == Facts(
        kernel=os.uname().release,
        features=frozenset({*HELPERS, "MM_OWNER", "THREAD_STATUS"}),
        hooks=frozenset(HOOKS),
        lsms=("lockdown", "capability", "bpf"),
        lockdown="integrity",
        kernel_addresses=True,
        refused={Attach.LSM: "EPERM", Attach.FENTRY: "9999"},
    )
    assert {(name, count) for name, count, _ in libbpf.asked} == {(b"cloudtaser_try", 2)}
    assert len(libbpf.asked) == len(Attach)
    assert open_descriptors() == descriptors


@needs_root
def test_a_way_to_attach_without_its_place_is_not_tried(root):
    libbpf = Loads()

    facts = facts_of(root, libbpf, {"bpf_lsm_ptrace_access_check", "btf_trace_sched_process_fork"})

    assert facts.refused == dict.fromkeys(
        (Attach.TRACEPOINT, Attach.LSM), "this kernel has no place for them"
    )
    assert len(libbpf.asked) == len(Attach) - 2
    assert HOOKS.keys() - facts.hooks == {"tree_fork", "lsm_ptrace_access"}


_MEMORY = {"remote_memory", "remote_memory_again"}


@needs_root
@pytest.mark.parametrize(
    ("missing", "hooks"),
    [
        ({"owner"}, _MEMORY),
        ({"task_pt_regs"}, {*_MEMORY, "wait_for_stop"}),
        ({"get_current_task_btf"}, {*_MEMORY, "wait_for_stop", "syscall_exit", "undo_stop"}),
        ({"btf_trace_mmap_lock_start_locking"}, {"remote_memory"}),
        ({"__ia32_compat_sys_process_vm_readv"}, set()),
        (
            {"__ia32_compat_sys_process_vm_readv", "__ia32_sys_process_vm_readv"},
            {"enter_vm_read_32"},
        ),
        ({"security_file_open"}, {"fmod_file_open", "fmod_file_open_again"}),
    ],
    ids=lambda each: ", ".join(sorted(each)),
)
def test_a_program_that_the_kernel_has_no_place_or_no_member_for_is_left_out(root, missing, hooks):
    assert HOOKS.keys() - facts_of(root, missing=missing).hooks == hooks


@needs_root
@pytest.mark.parametrize(
    ("text", "expected"),
    [("capability\n", ("capability",)), ("lockdown,bpf", ("lockdown", "bpf")), (None, None)],
)
def test_the_boot_list_is_read(root, text, expected):
    write(root / "sys/kernel/security/lsm", text)

    assert facts_of(root).lsms == expected


@needs_root
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[none] integrity confidentiality\n", "none"),
        ("none integrity [confidentiality]\n", "confidentiality"),
        ("", "none"),
        (None, "none"),
    ],
)
def test_lockdown_is_read(root, text, expected):
    write(root / "sys/kernel/security/lockdown", text)

    assert facts_of(root).lockdown == expected


PER_CPU = "".join(f"{at * 8:016x} A per_cpu_{at}\n" for at in range(60))


@needs_root
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{PER_CPU}ffffffff81000000 T _stext\n", True),
        ("0000000000000000 T _stext\n" * 5000, False),
        ("0000000000000000 A first\n", False),
        ("", False),
        ("garbage\n", False),
        ("\n", False),
        (None, False),
    ],
    ids=["shown", "hidden", "one", "empty", "garbage", "blank", "absent"],
)
def test_whether_addresses_are_shown_is_read(root, text, expected):
    write(root / "proc/kallsyms", text)

    assert facts_of(root).kernel_addresses is expected


def test_without_root_there_are_no_facts(root):
    with as_nobody(), pytest.raises(NodeError, match=r"^loading programs into the kernel takes root: run as"):
        facts_of(root)


def test_a_place_that_the_kernel_lacks_has_no_id():
    hook = HOOKS["enter_vm_read_32"]
    types = Types()

    assert target_id(types, hook) is not None
    types.missing = (hook.target,)
    assert target_id(types, hook) is None
