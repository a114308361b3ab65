"""The reader of BTF on kernels made up of dictionaries, and on bytes that no compiler would write."""

import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.btf import HELPERS, OFFSETS, STRUCTS, Btf, Member, features, header
from agent.errors import BtfError, NodeError
from agent.libbpf import Libbpf

NEEDED = [(name, member) for name, members in STRUCTS.items() for member in members if not member.optional]
OPTIONAL = [(name, member) for name, members in STRUCTS.items() for member in members if member.optional]


class MadeUp(Btf):
    """A kernel whose members are `offsets`, and whose helpers have the numbers in `helpers`."""

    def __init__(self, offsets, helpers):
        self.offsets, self.helpers = offsets, helpers

    def offset(self, struct, path):
        return self.offsets.get((struct, path))

    def enumerators(self, enum):
        return self.helpers if enum == "bpf_func_id" else {}


@pytest.fixture
def kernel():
    """A kernel that has everything, each struct with 8 bytes of something before each member."""
    offsets = {}
    for name, members in STRUCTS.items():
        at = 8
        for member in members:
            offsets[name, member.paths[-1]] = at
            at += (member.size_bytes + 7) // 8 * 8 + 8
    for at, place in enumerate(OFFSETS.values()):
        offsets.setdefault(place, 512 + at)
    return MadeUp(offsets, {f"BPF_FUNC_{name}": 158 + at for at, name in enumerate(HELPERS)})


@pytest.mark.parametrize(
    ("declaration", "field"),
    [
        ("int pid", "pid"),
        ("struct file *exe_file", "exe_file"),
        ("void **fd", "fd"),
        ("char comm[16]", "comm"),
        ("unsigned long *many[4]", "many"),
    ],
)
def test_a_declaration_declares_one_field(declaration, field):
    assert Member(paths=("x",), declaration=declaration, size_bytes=8).field == field


def test_each_member_is_where_the_kernel_has_it(kernel):
    text = header(kernel)

    asserted = [line for line in text.splitlines() if line.startswith("_Static_assert")]
    assert asserted == [
        f"_Static_assert(__builtin_offsetof(struct {name}, {member.field}) =="
        f' {kernel.offsets[name, member.paths[-1]]}, "{name}.{member.field}");'
        for name, members in STRUCTS.items()
        for member in members
    ]


def test_what_lies_between_members_is_padding(kernel):
    assert (
        "struct fdtable {\n\tchar pad_0[8];\n\tunsigned int max_fds;\n\tchar pad_12[12];\n\tvoid ** fd;\n};\n"
    ) in header(kernel)


def test_members_are_declared_in_the_order_of_this_kernel(kernel):
    kernel.offsets |= {("super_block", "s_dev"): 64, ("super_block", "s_magic"): 0}

    text = header(kernel)

    assert text.index("unsigned long s_magic;") < text.index("__u32 s_dev;")


@pytest.mark.parametrize(("name", "member"), NEEDED, ids=lambda each: getattr(each, "field", each))
def test_a_kernel_without_a_member_is_refused_and_the_member_named(kernel, name, member):
    for path in member.paths:
        kernel.offsets.pop((name, path), None)

    with pytest.raises(BtfError) as refusal:
        header(kernel)

    assert str(refusal.value) == f"this kernel's BTF has no {name}.{' or '.join(member.paths)}"


@pytest.mark.parametrize(
    ("name", "path"), [each for each in OFFSETS.values() if each != ("task_struct", "tgid")]
)
def test_a_kernel_without_an_offset_is_refused_and_the_member_named(kernel, name, path):
    del kernel.offsets[name, path]

    with pytest.raises(BtfError, match=f"^this kernel's BTF has no {name}.{path}$"):
        header(kernel)


@pytest.mark.parametrize(("name", "member"), OPTIONAL, ids=lambda each: getattr(each, "optional", each))
def test_an_optional_member_defines_that_it_is_there(kernel, name, member):
    there, features_then = header(kernel), features(kernel)
    del kernel.offsets[name, member.paths[0]]
    gone, features_now = header(kernel), features(kernel)

    assert f"#define CT_HAVE_{member.optional} 1\n" in there
    assert f"{member.declaration};" not in gone
    assert f"CT_HAVE_{member.optional}" not in gone
    assert features_then - features_now == {member.optional}


@pytest.mark.parametrize("helper", HELPERS)
def test_a_helper_is_defined_by_its_number_where_the_kernel_has_it(kernel, helper):
    there, number = header(kernel), kernel.helpers.pop(f"BPF_FUNC_{helper}")
    gone = header(kernel)

    assert f"#define CT_HAVE_{helper.upper()} {number}\n" in there
    assert f"CT_HAVE_{helper.upper()}" not in gone
    assert helper not in features(kernel)


def test_the_first_of_two_names_counts_when_a_kernel_has_both(kernel):
    kernel.offsets |= {("dentry", "d_iname"): 128, ("dentry", "d_shortname"): 256}

    assert 'd_inline) == 128, "dentry.d_inline"' in header(kernel)


@pytest.mark.parametrize("handle", [None, 0, (1 << 64) - 2, (1 << 64) - 4095])
def test_a_refusal_of_either_libbpf_is_told(handle):
    refusing: Any = SimpleNamespace(btf__parse=lambda _path, _base: handle)

    with pytest.raises(BtfError, match=r"^/x is missing or unreadable: boot a kernel built with CONFIG_"):
        Btf(refusing, "/x")


# The format of Documentation/bpf/btf.rst: a header, types, then strings, of which ours are a and b.
def raw_btf(*types, strings=b"\0a\0b\0"):
    body = b"".join(types)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings)) + body + strings


def one(name, kind, size_or_type, *words, members=0):
    return struct.pack(f"<{3 + len(words)}I", name, kind << 24 | members, size_or_type, *words)


ANONYMOUS, A, B = 0, 1, 3
INT = one(B, 1, 4, 32)
STRUCT, TYPEDEF = 4, 8

GOOD = raw_btf(one(A, STRUCT, 4, B, 2, 0, members=1), INT)


def in_a_child(path, expression):
    """Evaluate an expression about `btf` where a crash ends only the child."""
    program = (
        "import sys\nfrom agent.btf import Btf\nfrom agent.errors import BtfError\n"
        "from agent.libbpf import Libbpf\n"
        f"try:\n    with Btf(Libbpf(), sys.argv[1]) as btf: print({expression})\n"
        "except BtfError: print('BtfError')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, timeout=5, check=False
    )


@pytest.fixture(scope="module")
def library():
    try:
        return Libbpf()
    except NodeError as why:
        pytest.skip(str(why))


def test_bytes_written_by_hand_are_read(tmp_path, library):
    path = tmp_path / "btf"
    path.write_bytes(GOOD)

    done = in_a_child(path, "btf.find('a', 4), btf.offset('a', 'b'), btf.offset('a', 'c')")

    assert done.stdout == "1 0 None\n"


BROKEN = {
    "empty": b"",
    "one byte": GOOD[:1],
    "header cut": GOOD[:20],
    "types cut": GOOD[:30],
    "strings cut": GOOD[:-1],
    "text": b"not type information\n" * 100,
    "zeros": bytes(4096),
    "another magic": b"\x00\x00" + GOOD[2:],
    "an ELF file without a section": Path(sys.executable).read_bytes()[:64],
    "more members than there are": raw_btf(one(A, STRUCT, 4, B, 2, 0, members=900)),
    "a kind that does not exist": raw_btf(one(A, 31, 4)),
    "types past the end": struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 1 << 30, 1 << 30, 4) + bytes(8),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_an_error_and_never_a_crash(tmp_path, name, library):
    path = tmp_path / "btf"
    path.write_bytes(BROKEN[name])

    done = in_a_child(path, "btf.offset('a', 'b')")

    assert (done.returncode, done.stdout, done.stderr) == (0, "BtfError\n", "")
    with pytest.raises(BtfError):
        Btf(library, str(path))


def test_a_file_that_is_not_there_is_an_error(tmp_path, library):
    with pytest.raises(BtfError, match=f"^{tmp_path}/none is missing"):
        Btf(library, f"{tmp_path}/none")


# libbpf checks sizes when it parses, not what types refer to.
HOSTILE = {
    "a typedef of itself": raw_btf(one(A, STRUCT, 4, B, 2, 0, members=1), one(B, TYPEDEF, 2)),
    "typedefs in a ring": raw_btf(
        one(A, STRUCT, 4, B, 2, 0, members=1), one(B, TYPEDEF, 3), one(B, TYPEDEF, 2)
    ),
    "an anonymous member that is its own struct": raw_btf(one(A, STRUCT, 4, ANONYMOUS, 1, 0, members=1)),
    "a type that does not exist": raw_btf(one(A, STRUCT, 4, B, 77, 0, members=1)),
    "a name that is not text": raw_btf(
        one(A, STRUCT, 4, B, 2, 0, members=1), INT, strings=b"\0a\0\xff\xfe\0"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_types_are_an_error_and_never_a_crash(tmp_path, name, library):
    path = tmp_path / "btf"
    path.write_bytes(HOSTILE[name])

    done = in_a_child(path, "btf.offset('a', 'b.a')")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in {"BtfError\n", "None\n"}
