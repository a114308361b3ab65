"""The loader without BCC: the text it compiles, the tree it writes, how the kernel's refusals are told."""

import ctypes
import errno
import os
import re
import subprocess
import sys

import pytest

from agent.btf import HELPERS, Btf, header
from agent.errors import LoadError
from agent.hooks import HOOKS, Attach
from agent.libbpf import ProgLoadOpts
from agent.loader import COMMON, SOURCES, helper_calls, kernel_tree, load, source_text
from agent.preflight import target_id

# One instruction: operation, registers (source << 4 | destination), offset, immediate.
EXIT = bytes.fromhex("9500000000000000")
NOTHING = bytes.fromhex("b700000000000000") + EXIT  # r0 = 0; exit


def call(number, source=0):
    return bytes([0x85, source << 4, 0, 0]) + number.to_bytes(4, "little")


class Types(Btf):
    """A kernel in which every type is there, under a number of its own."""

    def __init__(self):
        self.ids: dict[str, int] = {}

    def find(self, name, _kind):
        return self.ids.setdefault(name, len(self.ids) + 1)

    def offset(self, _struct, _path):
        return 0

    def enumerators(self, _enum):
        return {f"BPF_FUNC_{name}": 1 for name in HELPERS}


class Verifier:
    """libbpf whose kernel answers each load with `error` and, where it is asked for, `log`."""

    def __init__(self, error=0, log=b""):
        self.error, self.log = error, log
        self.loads: list[tuple[Attach, bytes, bytes, bytes, int]] = []
        self.logs_asked: list[int] = []

    def bpf_prog_load(self, *arguments):
        program_type, name, licence, code, count, reference = arguments
        options = reference._obj
        attach = Attach((program_type, options.expected_attach_type))
        self.loads.append((attach, name, licence, bytes(code)[: count * 8], options.attach_btf_id))
        assert options.sz == ctypes.sizeof(ProgLoadOpts)
        if not self.error:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.logs_asked.append(options.log_size)
        if options.log_level and self.log:
            address = ctypes.c_void_p.from_buffer(options, ProgLoadOpts.log_buf.offset).value
            assert address
            ctypes.memmove(address, self.log + b"\0", len(self.log) + 1)
        return -self.error


@pytest.fixture
def refusal():
    """Load under a verifier that refuses, and return the message."""

    def refusal(error=errno.EACCES, log=b"", hook="tree_fork"):
        with pytest.raises(LoadError) as raised:
            load(Verifier(error, log), Types(), HOOKS[hook], NOTHING)  # type: ignore[arg-type]
        return str(raised.value)

    return refusal


def test_no_module_of_bcc_is_loaded():
    program = "import sys, agent.loader, agent.app; print([name for name in sys.modules if 'bcc' in name])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("functions", "sources"),
    [
        ([], []),
        (["tree_fork"], ["trees.bpf.c"]),
        (["tree_fork", "tree_exec", "tree_free"], ["trees.bpf.c"]),
        (["undo_stop", "tree_fork", "syscall_exit"], ["syscall_exit.bpf.c", "trees.bpf.c"]),
        (HOOKS, sorted({hook.source for hook in HOOKS.values()})),
    ],
    ids=["none", "one", "three of a file", "in their order", "all"],
)
def test_each_source_is_in_the_text_once(functions, sources):
    text = source_text(HOOKS[function] for function in functions)

    names = re.findall(r'^#line 1 "bpf_programs/(.*)"$', text, re.MULTILINE)
    assert names[: len(COMMON)] == list(COMMON)
    assert (names[len(COMMON) :] if len(sources) < 3 else sorted(names[len(COMMON) :])) == sources


def test_the_text_is_that_of_the_files():
    text = source_text([HOOKS["tree_fork"]])

    expected = [
        f'#line 1 "bpf_programs/{name}"\n' + (SOURCES / name).read_text() for name in (*COMMON, "trees.bpf.c")
    ]
    assert text == "#include <linux/types.h>\n" + "".join(expected)


def test_every_file_of_the_programs_is_used():
    files = {path.name for path in SOURCES.iterdir() if path.suffix in {".c", ".h"}}

    assert files == {*COMMON, *(hook.source for hook in HOOKS.values())}


# BCC includes these before the text, from -include and from its own helpers.h.
BY_BCC = {
    "arch/x86/include/asm/page.h",
    "include/linux/bpf_common.h",
    "include/linux/kconfig.h",
    "include/linux/log2.h",
    "include/linux/types.h",
    "include/linux/version.h",
    "include/uapi/linux/bpf.h",
    "include/uapi/linux/if_packet.h",
}


def test_a_tree_of_a_kernel_has_what_bcc_wants_of_it(tmp_path):
    kernel_tree(tmp_path, Types())

    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.h")} == BY_BCC
    assert "#define CONFIG_BPF_SYSCALL 1" in (tmp_path / "include/linux/kconfig.h").read_text()
    assert header(Types()) in (tmp_path / "include/linux/types.h").read_text()


def test_a_tree_can_be_written_again(tmp_path):
    kernel_tree(tmp_path, Types())
    (tmp_path / "include/linux/types.h").write_text("of another kernel")
    kernel_tree(tmp_path, Types())

    assert header(Types()) in (tmp_path / "include/linux/types.h").read_text()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"", set()),
        (NOTHING, set()),
        (call(14) + EXIT, {14}),
        (call(5) + call(14) + call(5) + EXIT, {5, 14}),
        (call(113), {113}),
        (call(7, source=1) + EXIT, set()),  # of another function of the program
        (call(7, source=2) + EXIT, set()),  # of a function of the kernel
        (bytes.fromhex("1801000085000000" + "0000000001000000") + EXIT, set()),  # 0x85 as a number
        (bytes.fromhex("b701000085000000") + call(1 << 24) + EXIT, {1 << 24}),
    ],
    ids=[
        "empty",
        "nothing",
        "one",
        "two",
        "last",
        "a subprogram",
        "a kfunc",
        "a number of two words",
        "a number",
    ],
)
def test_the_helpers_that_a_program_calls_are_found(code, expected):
    assert helper_calls(code) == expected


@pytest.mark.parametrize("function", HOOKS)
def test_a_program_is_loaded_for_its_place_under_its_name(function):
    libbpf, types, hook = Verifier(), Types(), HOOKS[function]

    os.close(load(libbpf, types, hook, NOTHING))  # type: ignore[arg-type]

    place = target_id(types, hook)
    assert libbpf.loads == [(hook.attach, hook.name.encode(), b"GPL", NOTHING, place)]


# bpf_probe_read, _str, _kernel and _kernel_str; reading the user's memory is another matter.
@pytest.mark.parametrize("number", [4, 45, 113, 115])
@pytest.mark.parametrize("function", [name for name, hook in HOOKS.items() if not hook.reads_kernel])
def test_a_program_that_would_not_load_under_lockdown_is_refused_before_it_is_loaded(function, number):
    libbpf = Verifier()

    with pytest.raises(LoadError, match=f"^{function} was compiled to read kernel memory, which lockdown="):
        load(libbpf, Types(), HOOKS[function], call(14) + call(number) + EXIT)  # type: ignore[arg-type]

    assert libbpf.loads == []


@pytest.mark.parametrize(("function", "number"), [("syscall_exit", 113), ("tree_fork", 112)])
def test_a_program_may_read_what_it_is_there_to_read(function, number):
    libbpf = Verifier()

    os.close(load(libbpf, Types(), HOOKS[function], call(number) + EXIT))  # type: ignore[arg-type]

    assert len(libbpf.loads) == 1


def test_a_refusal_ends_with_the_last_lines_of_the_verifier(refusal):
    log = b"".join(b"line %d\n" % at for at in range(100)) + b"R1 invalid mem access\nprocessed 7 insns\n"

    assert refusal(errno.EACCES, log) == (
        "the kernel refuses tree_fork: EACCES: "
        + " | ".join(f"line {at}" for at in range(90, 100))
        + " | R1 invalid mem access | processed 7 insns"
    )


@pytest.mark.parametrize(
    ("error", "log", "expected"),
    [
        (errno.EPERM, b"", "the kernel refuses undo_stop: EPERM"),
        (errno.EINVAL, b"\n", "the kernel refuses undo_stop: EINVAL"),
        (9999, b"", "the kernel refuses undo_stop: 9999"),
        (errno.EINVAL, b"\xff odd\n", "the kernel refuses undo_stop: EINVAL: \N{REPLACEMENT CHARACTER} odd"),
    ],
)
def test_a_refusal_is_one_line(refusal, error, log, expected):
    assert refusal(error, log, "undo_stop") == expected


def test_the_verifier_is_asked_for_its_words_only_after_a_refusal():
    libbpf = Verifier(errno.EACCES)

    with pytest.raises(LoadError):
        load(libbpf, Types(), HOOKS["tree_fork"], NOTHING)  # type: ignore[arg-type]

    assert [bool(size) for size in libbpf.logs_asked] == [False, True]
