import ctypes
import json
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import abi
from agent.events import (
    Attempt,
    AttemptKey,
    Clocks,
    DecodeError,
    Remote,
    TaskInfo,
    Tracer,
    TreeBegins,
    TreeEnds,
    TreeId,
    as_dict,
    decode,
    label,
)
from agent.vectors import BY_ID, CATALOGUE, Action, Layer, Outcome

# Laid out as bpf_programs/events.h says, little-endian.
HEADER = """
    00 ca 9a 3b 00 00 00 00   ktime_ns 1 s
    2a 00 00 00 00 00 00 00   cgroup_id 42
"""
OFFENDER = """
    80 96 98 00 00 00 00 00   start_ns 10 ms
    d2 04 00 00               tgid 1234
    d3 04 00 00               tid 1235
    01 00 00 00               ppid 1
    00 00 00 00               uid root
    67 64 62 00 00 00 00 00   comm gdb
    00 00 00 00 00 00 00 00
"""
TARGET = """
    00 2d 31 01 00 00 00 00   start_ns 20 ms
    10 00 00 00               tgid 16
    11 00 00 00               tid 17
    01 00 00 00               ppid 1
    e8 03 00 00               uid 1000
    63 6c 6f 75 64 74 61 73   comm cloudtaser-wrap, 15 characters
    65 72 2d 77 72 61 70 00
"""
TREE = """
    00 2d 31 01 00 00 00 00   start_ns 20 ms
    10 00 00 00               pid 16
    00 00 00 00               reserved
"""
ATTEMPT = f"""
    {HEADER}
    01 00 00 00               kind ATTEMPT
    70 01 00 00               size 368
    04 00 00 00               vector PROC_MEM
    02 00 00 00               action KILL
    02 00 00 00               outcome KILLED
    00 00 00 00               layer LSM
    05 00 00 00               flags COMPAT, SECOND_LINE
    27 01 00 00               syscall 295
    {OFFENDER}
    {TARGET}
    {TREE}
    2b 00 00 00 00 00 00 00   target_cgroup 43
    10 00 00 00               tracer_tgid 16
    00 00 00 00               reserved
    67 64 62 73 65 72 76 65   tracer_comm gdbserver
    72 00 00 00 00 00 00 00
    67 64 62 00{" 00" * 28}   exe gdb
    62 69 6e 00{" 00" * 28}   bin
    75 73 72 00{" 00" * 28}   usr
    2f 00 00 00{" 00" * 28}   /
    6d 65 6d 00{" 00" * 28}   file mem
    0a 00 00 07{" 00" * 12}   remote address 10.0.0.7
    38 15                     port 5432
    02 00                     family AF_INET
    06 00 00 00               protocol TCP
    03 00 00 00               secret 3
    0b 00 00 00               number SIGSEGV
"""
TREE_BEGINS = f"""
    {HEADER}
    02 00 00 00               kind TREE_BEGINS
    60 00 00 00               size 96
    {TARGET}
    {TREE}
    2a 00 00 00 00 00 00 00   cgroup 42
    29 00 00 00 00 00 00 00   pod 41
"""
TREE_ENDS = TREE_BEGINS.replace("02 00 00 00               kind TREE_BEGINS", "03 00 00 00   kind TREE_ENDS")

PLACELESS = dict.fromkeys(("container", "container_id", "pod", "pod_uid", "namespace", "where"))
WRAPPER = TaskInfo(start_ns=20_000_000, tgid=16, tid=17, ppid=1, uid=1000, comm="cloudtaser-wrap")
KILLED_GDB = Attempt(
    ktime_ns=1_000_000_000,
    cgroup_id=42,
    vector=BY_ID["proc-mem"],
    action=Action.KILL,
    outcome=Outcome.KILLED,
    layer=Layer.LSM,
    compat=True,
    selftest=False,
    second_line=True,
    syscall=295,
    offender=TaskInfo(start_ns=10_000_000, tgid=1234, tid=1235, ppid=1, uid=0, comm="gdb"),
    target=WRAPPER,
    tree=TreeId(pid=16, start_ns=20_000_000),
    target_cgroup=43,
    tracer=Tracer(tgid=16, comm="gdbserver"),
    exe="/usr/bin/gdb",
    file="mem",
    remote=Remote(address=IPv4Address("10.0.0.7"), port=5432, protocol="tcp"),
    secret=3,
    number=11,
)

# The machine was suspended for one second since its start on 2026-01-02.
CLOCKS = Clocks(monotonic_offset_ns=1_767_323_045_000_000_001, boottime_offset_ns=1_767_323_044_000_000_001)


def from_hex(text):
    """Return the bytes of commented hex: two digits a byte, the comment after three spaces."""
    return bytes.fromhex(" ".join(line.strip().partition("   ")[0] for line in text.splitlines()))


def attempt(**fields):
    """Return a record like ATTEMPT with other values in some fields."""
    record = abi.Attempt.from_buffer_copy(from_hex(ATTEMPT))
    for name, value in fields.items():
        setattr(record, name, value)
    return bytes(record)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (ATTEMPT, KILLED_GDB),
        (
            TREE_BEGINS,
            TreeBegins(ktime_ns=10**9, cgroup_id=42, wrapper=WRAPPER, tree=KILLED_GDB.tree),
        ),
        (
            TREE_ENDS,
            TreeEnds(ktime_ns=10**9, cgroup_id=42, wrapper=WRAPPER, tree=KILLED_GDB.tree),
        ),
    ],
)
def test_a_record_is_decoded(record, expected):
    assert decode(from_hex(record)) == expected


@pytest.mark.parametrize(
    ("parts", "exe"),
    [
        ((b"gdb", b"/"), "/gdb"),
        ((b"gdb", b"bin", b"/"), "/bin/gdb"),
        ((b"gdb", b"bin", b"usr", b"/"), "/usr/bin/gdb"),
        ((b"gdb", b"bin", b"local", b"usr"), "…/usr/local/bin/gdb"),
        ((b"memfd:x",), "…/memfd:x"),
        ((), None),
        ((b"\xff\n", b"/"), "/\ufffd\n"),
    ],
)
def test_the_executable_is_rebuilt_from_its_names(parts, exe):
    record = abi.Attempt.from_buffer_copy(from_hex(ATTEMPT))
    for place in range(abi.EXE_PARTS):
        record.exe[place].value = parts[place] if place < len(parts) else b""

    event = decode(bytes(record))

    assert isinstance(event, Attempt)
    assert event.exe == exe


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (0, (False, False, False)),
        (1, (True, False, False)),
        (2, (False, True, False)),
        (4, (False, False, True)),
    ],
)
def test_flags_are_told_apart(flags, expected):
    event = decode(attempt(flags=flags))

    assert isinstance(event, Attempt)
    assert (event.compat, event.selftest, event.second_line) == expected


def test_what_is_unknown_is_none():
    event = decode(attempt(syscall=-1, tracer_tgid=0, file=b"", remote=abi.Endpoint(), secret=0))

    assert isinstance(event, Attempt)
    assert event.syscall is None
    assert event.tracer is None
    assert event.file is None
    assert event.remote is None
    assert event.secret is None


@pytest.mark.parametrize(
    ("family", "protocol", "expected"),
    [
        (socket.AF_INET, 17, Remote(address=IPv4Address("32.1.13.184"), port=53, protocol="udp")),
        (socket.AF_INET6, 0, Remote(address=IPv6Address("2001:db8::1"), port=53, protocol=None)),
        (socket.AF_UNIX, 0, None),
    ],
)
def test_the_other_end_of_a_socket_is_told(family, protocol, expected):
    address = (ctypes.c_uint8 * 16)(*IPv6Address("2001:db8::1").packed)
    event = decode(attempt(remote=abi.Endpoint(address=address, port=53, family=family, protocol=protocol)))

    assert isinstance(event, Attempt)
    assert event.remote == expected


def test_a_secret_is_told_by_the_name_that_its_tree_gave_it():
    def name(tree, number):
        assert (str(tree), number) == ("16:20000000", 3)
        return "DB_PASSWORD"

    assert as_dict(KILLED_GDB, node="n", clocks=CLOCKS, name_secret=name)["detail"]["secret"] == "DB_PASSWORD"


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (b"", "0 bytes is shorter than its header"),
        (from_hex(HEADER), "16 bytes is shorter"),
        (from_hex(ATTEMPT)[:-1], "a record of 367 bytes says that it has 368"),
        (from_hex(ATTEMPT) + b"\0", "a record of 369 bytes says that it has 368"),
        (from_hex(HEADER + "09 00 00 00 18 00 00 00"), "unknown kind of record 9"),
        (from_hex(HEADER + "01 00 00 00 18 00 00 00"), "Attempt has 368 bytes, this record 24"),
        (from_hex(HEADER + "02 00 00 00 18 00 00 00"), "TreeRecord has 96 bytes, this record 24"),
        (attempt(vector=63), "unknown vector 63"),
        (attempt(flags=8), "unknown flags 0x8"),
        (attempt(action=3), "3 is not a valid Action"),
        (attempt(outcome=3), "3 is not a valid Outcome"),
        (attempt(layer=3), "3 is not a valid Layer"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(record, complaint):
    with pytest.raises(DecodeError, match=complaint):
        decode(record)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_event_or_refused(record):
    with suppress(DecodeError):
        decode(record)


# Every byte after the header is the attacker's to wish for.
@given(st.binary(min_size=ctypes.sizeof(abi.Attempt), max_size=ctypes.sizeof(abi.Attempt)))
def test_any_attempt_that_decodes_can_be_told(body):
    record = abi.Attempt.from_buffer_copy(body)
    record.header.kind, record.header.size = abi.Kind.ATTEMPT, len(body)
    record.vector, record.action, record.outcome, record.layer = 8, 2, 2, 2
    record.flags &= 7

    told = json.dumps(as_dict(decode(bytes(record)), node="n", clocks=CLOCKS))

    assert told.isascii()
    assert told.isprintable()
    assert len(told) < 4096 - 512


def test_an_attempt_is_told_in_the_schema():
    assert as_dict(KILLED_GDB, node="node-1", clocks=CLOCKS) == {
        "schema": "cloudtaser.event/v1",
        "time": "2026-01-02T03:04:06.000000001Z",
        "node": "node-1",
        "type": "attempt",
        "vector": "proc-mem",
        "action": "kill",
        "outcome": "killed",
        "layer": "lsm",
        "offender": {
            "pid": 1234,
            "tgid": 1234,
            "tid": 1235,
            "ppid": 1,
            "uid": 0,
            "comm": "gdb",
            "exe": "/usr/bin/gdb",
            "start_time": "2026-01-02T03:04:04.010000001Z",
            **PLACELESS,
        },
        "target": {
            "pid": 16,
            "tid": 17,
            "comm": "cloudtaser-wrap",
            "tree": "16:20000000",
            **PLACELESS,
        },
        "detail": {
            "syscall": 295,
            "abi": "32",
            "file": "mem",
            "second_line": True,
            "tracer": {"pid": 16, "comm": "gdbserver"},
            "secret": None,  # nobody has named it
            "remote": {"address": "10.0.0.7", "port": 5432, "protocol": "tcp"},
        },
    }


def test_what_is_unknown_is_told_as_null():
    nobody = abi.Task()
    event = decode(
        attempt(
            offender=nobody,
            target=nobody,
            tree=abi.Tree(),
            syscall=-1,
            tracer_tgid=0,
            file=b"",
            remote=abi.Endpoint(),
            secret=0,
            flags=0,
        )
    )

    told = as_dict(event, node="n", clocks=CLOCKS)

    assert told["offender"] | {"exe": None} == {
        "pid": None,
        "tgid": None,
        "tid": None,
        "ppid": None,
        "uid": 0,
        "comm": None,
        "exe": None,
        "start_time": None,
        **PLACELESS,
    }
    assert set(told["target"].values()) == {None}
    assert told["detail"] == {
        "syscall": None,
        "abi": None,
        "file": None,
        "second_line": False,
        "tracer": None,
        "secret": None,
        "remote": None,
    }


@pytest.mark.parametrize(("record", "kind"), [(TREE_BEGINS, "tree-begins"), (TREE_ENDS, "tree-ends")])
def test_a_tree_is_told_with_the_same_keys(record, kind):
    told = as_dict(decode(from_hex(record)), node="node-1", clocks=CLOCKS)

    assert told.keys() == as_dict(KILLED_GDB, node="node-1", clocks=CLOCKS).keys()
    assert {key: value for key, value in told.items() if value is not None} == {
        "schema": "cloudtaser.event/v1",
        "time": "2026-01-02T03:04:06.000000001Z",
        "node": "node-1",
        "type": kind,
        "target": {
            "pid": 16,
            "tid": 17,
            "comm": "cloudtaser-wrap",
            "tree": "16:20000000",
            **PLACELESS,
        },
    }


def test_clocks_are_read_together():
    readings = {0: 1_000, 1: 300, 7: 400}  # CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME

    assert Clocks.read(readings.__getitem__) == Clocks(monotonic_offset_ns=700, boottime_offset_ns=600)


def test_labels_are_the_words_of_the_schema():
    assert [label(each) for each in (*Action, *Outcome, *Layer)] == [
        *("detect", "deny", "kill"),
        *("detected", "denied", "killed"),
        *("lsm", "fmod_ret", "tracepoint"),
    ]


def test_attempt_keys_are_keys():
    counts = {
        AttemptKey(vector=vector, layer=layer, outcome=outcome): 0
        for vector in CATALOGUE
        for layer in Layer
        for outcome in Outcome
    }

    assert len(counts) == len(CATALOGUE) * len(Layer) * len(Outcome)
    assert AttemptKey(vector=CATALOGUE[0], layer=Layer.LSM, outcome=Outcome.KILLED) in counts
