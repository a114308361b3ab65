"""The compiler proves that agent/abi.py and agent/vectors.py say what bpf_programs/events.h says."""

import ctypes
import inspect
import re
import subprocess
from enum import IntEnum
from pathlib import Path

import pytest

from agent import abi, vectors

HEADER = Path(__file__).parents[2] / "bpf_programs" / "events.h"

# What the C members of each enum begin with. A class that is not here has no test, which is a failure.
PREFIXES = {
    "Action": "CT_",
    "AttemptFlag": "CT_ATTEMPT_",
    "Kind": "CT_RECORD_",
    "Layer": "CT_",
    "Loss": "CT_LOSS_",
    "MemberFlag": "CT_MEMBER_",
    "NameFlag": "CT_NAME_",
    "Outcome": "CT_",
    "PathClass": "CT_PATH_",
    "PodKind": "CT_POD_",
}
# Limits that Python does not name but follows from what it has.
DERIVED_LIMITS = {"CT_LOSSES": len(abi.Loss)}

_WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Wpadded", "-Werror", "-c", "-o", "/dev/null", "-x", "c")


def classes_of(base, *modules):
    return [
        member
        for module in modules
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, base) and member.__module__ == module.__name__
    ]


STRUCTURES = classes_of(ctypes.Structure, abi)
ENUMS = classes_of(IntEnum, abi, vectors)


def c_name(python_class):
    return "ct_" + re.sub(r"(?<!^)(?=[A-Z])", "_", python_class.__name__).lower()


def c_member(member):
    return PREFIXES[type(member).__name__] + member.name


def asserts_of_structure(structure):
    name = f"struct {c_name(structure)}"
    yield f"sizeof({name}) == {ctypes.sizeof(structure)}"
    for field, kind in structure._fields_:
        member = f"(({name} *)0)->{field}"
        yield f"__builtin_offsetof({name}, {field}) == {getattr(structure, field).offset}"
        yield f"sizeof({member}) == {ctypes.sizeof(kind)}"
        if kind in {ctypes.c_int32, ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64}:
            sign = "<" if kind(-1).value < 0 else ">"
            yield f"(__typeof__({member}))-1 {sign} 0"


def asserts_of_enum(enum):
    for member in enum:
        yield f"(enum {c_name(enum)}){c_member(member)} == {int(member)}"


def asserts_of_limits():
    for name, value in limits().items():
        yield f"{name} == {value}"


def limits():
    named = {
        f"CT_{name}": value for name, value in vars(abi).items() if name.isupper() and isinstance(value, int)
    }
    return named | DERIVED_LIMITS


def source(asserts, header=None):
    text = HEADER.read_text() if header is None else header
    lines = [f'_Static_assert({each}, "{each}");' for each in asserts]
    return "\n".join(["#include <linux/types.h>", text, *lines, ""])


# The 64-bit host is what ctypes is on; bpf is what the programs are compiled for.
@pytest.fixture(params=["gcc", "clang -target bpf"])
def compiles(request):
    multiarch = subprocess.run(
        ["gcc", "-print-multiarch"], capture_output=True, text=True, check=True
    ).stdout.strip()

    def compiles(text):
        return subprocess.run(
            [*request.param.split(), *_WARNINGS, f"-isystem/usr/include/{multiarch}", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )

    return compiles


def c_enums():
    """Return the members of every enum in the header, read as text."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    return {
        name: dict(re.findall(r"(\w+) = (\w+)", body))
        for name, body in re.findall(r"enum (\w+) \{(.*?)\};", text, flags=re.DOTALL)
    }


def test_both_sides_agree(compiles):
    asserts = [
        *(each for structure in STRUCTURES for each in asserts_of_structure(structure)),
        *(each for enum in ENUMS for each in asserts_of_enum(enum)),
        *asserts_of_limits(),
    ]

    done = compiles(source(asserts))

    assert done.stderr == ""
    assert done.returncode == 0


def test_every_struct_of_the_header_has_a_class():
    in_c = set(re.findall(r"^struct (\w+) \{", HEADER.read_text(), flags=re.MULTILINE))

    assert {c_name(structure) for structure in STRUCTURES} == in_c


def test_every_enum_and_every_member_of_the_header_is_known():
    in_python = {c_name(enum): {c_member(each): str(int(each)) for each in enum} for enum in ENUMS}
    in_python["ct_vector"] = {
        "CT_" + each.id.upper().replace("-", "_"): str(each.number) for each in vectors.CATALOGUE
    }
    in_python["ct_limits"] = {name: str(value) for name, value in limits().items()}

    assert in_python == c_enums()


def test_every_number_of_the_catalogue_has_an_action_in_the_configuration():
    assert max(each.number for each in vectors.CATALOGUE) < abi.MAX_VECTORS


class Inserted(ctypes.Structure):
    """Like `struct ct_rate`, with a field that the header lacks."""

    _fields_ = (
        ("window_start_ns", ctypes.c_uint64),
        ("inserted", ctypes.c_uint32),
        ("seen", ctypes.c_uint32),
    )


class Swapped(ctypes.Structure):
    """Like `struct ct_rate_key`, the other way round."""

    _fields_ = (("vector", ctypes.c_uint32), ("tgid", ctypes.c_uint32))


class Signed(ctypes.Structure):
    """Like `struct ct_rate_key`, with a sign."""

    _fields_ = (("tgid", ctypes.c_int32), ("vector", ctypes.c_uint32))


@pytest.mark.parametrize(
    ("wrong", "name", "complaint"),
    [
        (Inserted, "Rate", "inserted"),
        (Swapped, "RateKey", "__builtin_offsetof(struct ct_rate_key, vector) == 0"),
        (Signed, "RateKey", "-1 < 0"),
    ],
)
def test_a_class_that_differs_is_refused(compiles, wrong, name, complaint):
    renamed = type(name, (ctypes.Structure,), {"_fields_": wrong._fields_})

    done = compiles(source(asserts_of_structure(renamed)))

    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_number_that_differs_is_refused(compiles):
    class Kind(IntEnum):
        ATTEMPT = 7

    done = compiles(source(asserts_of_enum(Kind)))

    assert done.returncode != 0
    assert "CT_RECORD_ATTEMPT == 7" in done.stderr


def test_a_hole_in_a_struct_is_refused(compiles):
    hole = "struct ct_hole { __u32 first; __u64 second; };\nstruct ct_hole hole;\n"

    done = compiles(source([], HEADER.read_text() + hole))

    assert done.returncode != 0
    assert "padding struct" in done.stderr
