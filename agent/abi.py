"""The structs and numbers of `bpf_programs/events.h`, in ctypes.

Only `events.py`, `kernel.py` and `protected.py` read these classes; everything else works on the frozen
dataclasses made from them. `tests/build` proves with the compiler that both sides agree.
"""

import ctypes
from enum import IntEnum

MAX_VECTORS = 64
OUTCOMES = 3
LAYERS = 3
BANKS = 2
COUNTERS = BANKS * MAX_VECTORS * LAYERS * OUTCOMES
COMM = 16
NAME = 32
EXE_PARTS = 4
PATHS = 16
MAX_PODS = 4096


class Loss(IntEnum):
    """`enum ct_loss`: why a record is missing."""

    RATE_LIMITED = 0
    RING_FULL = 1
    MEMBERS_FULL = 2


class Kind(IntEnum):
    """`enum ct_kind`: what a record is."""

    ATTEMPT = 1
    TREE_BEGINS = 2
    TREE_ENDS = 3
    CGROUP = 4


class PathClass(IntEnum):
    """`enum ct_path_class`: the file of /proc that is read when the kernel takes another's mmap lock."""

    NONE = 0
    CMDLINE = 1
    PROC_MEM = 2
    PROC_ENVIRON = 3
    PROC_MAPS = 4


class MemberFlag(IntEnum):
    """`enum ct_member_flag`."""

    CANARY = 1
    EXITED = 2
    OF_POD = 4
    UNTOLD = 8


class PodKind(IntEnum):
    """`enum ct_pod_kind`: what a cgroup is, and what its pod says."""

    PARENT = 1
    UNSAID = 2
    YES = 3
    NO = 4


class NameFlag(IntEnum):
    """`enum ct_name_flag`."""

    OF_FILE = 1
    OF_TASK = 2


class AttemptFlag(IntEnum):
    """`enum ct_attempt_flag`."""

    COMPAT = 1
    SELFTEST = 2
    SECOND_LINE = 4


class Tree(ctypes.Structure):
    """`struct ct_tree`."""

    _fields_ = (("start_ns", ctypes.c_uint64), ("pid", ctypes.c_uint32), ("reserved", ctypes.c_uint32))


class Member(ctypes.Structure):
    """`struct ct_member`."""

    _fields_ = (
        ("tree", Tree),
        ("start_ns", ctypes.c_uint64),
        ("slack_ns", ctypes.c_uint64),
        ("pod", ctypes.c_uint64),
        ("cgroup", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("comm", ctypes.c_char * COMM),
    )


class Pod(ctypes.Structure):
    """`struct ct_pod`."""

    _fields_ = (
        ("action", ctypes.c_uint8 * MAX_VECTORS),
        ("kind", ctypes.c_uint32),
        ("shared_pids", ctypes.c_uint32),
    )


class Name(ctypes.Structure):
    """`struct ct_name`."""

    _fields_ = (("text", ctypes.c_char * NAME),)


class FileId(ctypes.Structure):
    """`struct ct_file_id`."""

    _fields_ = (("inode", ctypes.c_uint64), ("device", ctypes.c_uint32), ("reserved", ctypes.c_uint32))


class Path(ctypes.Structure):
    """`struct ct_path`."""

    _fields_ = (
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("path_class", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class Paths(ctypes.Structure):
    """`struct ct_paths`."""

    _fields_ = (("path", Path * PATHS),)


class Config(ctypes.Structure):
    """`struct ct_config`."""

    _fields_ = (
        ("action", ctypes.c_uint8 * MAX_VECTORS),
        ("rate_window_ns", ctypes.c_uint64),
        ("rate_burst", ctypes.c_uint32),
        ("layer", ctypes.c_uint32),
        ("armed", ctypes.c_uint32),
        ("pods", ctypes.c_uint32),
        ("hierarchy", ctypes.c_uint32),
        ("shared_pods", ctypes.c_uint32),
        ("protect_unknown", ctypes.c_uint32),
        ("any_parent", ctypes.c_uint32),
    )


class RateKey(ctypes.Structure):
    """`struct ct_rate_key`."""

    _fields_ = (("tgid", ctypes.c_uint32), ("vector", ctypes.c_uint32))


class Rate(ctypes.Structure):
    """`struct ct_rate`."""

    _fields_ = (
        ("window_start_ns", ctypes.c_uint64),
        ("seen", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class Header(ctypes.Structure):
    """`struct ct_header`."""

    _fields_ = (
        ("ktime_ns", ctypes.c_uint64),
        ("cgroup_id", ctypes.c_uint64),
        ("kind", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
    )


class Task(ctypes.Structure):
    """`struct ct_task`."""

    _fields_ = (
        ("start_ns", ctypes.c_uint64),
        ("tgid", ctypes.c_uint32),
        ("tid", ctypes.c_uint32),
        ("ppid", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("comm", ctypes.c_char * COMM),
    )


class Endpoint(ctypes.Structure):
    """`struct ct_endpoint`."""

    _fields_ = (
        ("address", ctypes.c_uint8 * 16),
        ("port", ctypes.c_uint16),
        ("family", ctypes.c_uint16),
        ("protocol", ctypes.c_uint32),
    )


class Attempt(ctypes.Structure):
    """`struct ct_attempt`."""

    _fields_ = (
        ("header", Header),
        ("vector", ctypes.c_uint32),
        ("action", ctypes.c_uint32),
        ("outcome", ctypes.c_uint32),
        ("layer", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("syscall", ctypes.c_int32),
        ("offender", Task),
        ("target", Task),
        ("tree", Tree),
        ("target_cgroup", ctypes.c_uint64),
        ("tracer_tgid", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("tracer_comm", ctypes.c_char * COMM),
        ("exe", (ctypes.c_char * NAME) * EXE_PARTS),
        ("file", ctypes.c_char * NAME),
        ("remote", Endpoint),
        ("secret", ctypes.c_uint32),
        ("number", ctypes.c_uint32),
    )


class TreeRecord(ctypes.Structure):
    """`struct ct_tree_record`."""

    _fields_ = (
        ("header", Header),
        ("wrapper", Task),
        ("tree", Tree),
        ("cgroup", ctypes.c_uint64),
        ("pod", ctypes.c_uint64),
    )


class CgroupRecord(ctypes.Structure):
    """`struct ct_cgroup_record`."""

    _fields_ = (("header", Header), ("id", ctypes.c_uint64), ("parent", ctypes.c_uint64))
