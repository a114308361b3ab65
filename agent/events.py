"""What the ring buffer's bytes mean, and the JSON that tells it.

Every string comes from a task that may be the attacker's: it is decoded with replacement, never trusted
and never used to decide anything. Size, kind and every number are checked, so that a record which does
not fit is a `DecodeError` and nothing worse.
"""

import ctypes
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Any, Self, TypeVar, assert_never

from agent import abi
from agent.vectors import BY_NUMBER, Action, Layer, Outcome, Vector

SCHEMA = "cloudtaser.event/v1"

_PROTOCOLS: Mapping[int, str] = MappingProxyType(
    {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", socket.IPPROTO_ICMP: "icmp", 58: "icmpv6"}
)

_Record = TypeVar("_Record", abi.Attempt, abi.TreeRecord)

_SIZES: Mapping[int, int] = MappingProxyType(
    {
        abi.Kind.ATTEMPT: ctypes.sizeof(abi.Attempt),
        abi.Kind.TREE_BEGINS: ctypes.sizeof(abi.TreeRecord),
        abi.Kind.TREE_ENDS: ctypes.sizeof(abi.TreeRecord),
        abi.Kind.CGROUP: ctypes.sizeof(abi.CgroupRecord),
    }
)


class DecodeError(ValueError):
    """A record of the ring buffer is not what `bpf_programs/events.h` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeId:
    """A protected tree: its wrapper's process id and start, in nanoseconds since boot."""

    pid: int
    start_ns: int

    def __str__(self) -> str:
        """Return the form that events and the control socket use."""
        return f"{self.pid}:{self.start_ns}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """A task as the hook saw it; 0 or "" where this kernel offers no way to know."""

    start_ns: int
    tgid: int
    tid: int
    ppid: int
    uid: int
    comm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracer:
    """Who traces, or would, when the offender hands itself over (`ptrace-traceme`)."""

    tgid: int
    comm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """The other end of a socket; `port` is 0 and `protocol` None where they are unknown."""

    address: IPv4Address | IPv6Address
    port: int
    protocol: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Somebody tried to get at a secret."""

    ktime_ns: int
    cgroup_id: int
    vector: Vector
    action: Action
    outcome: Outcome
    layer: Layer
    compat: bool
    selftest: bool
    second_line: bool
    syscall: int | None
    offender: TaskInfo
    target: TaskInfo
    tree: TreeId
    target_cgroup: int
    tracer: Tracer | None
    exe: str | None
    file: str | None
    remote: Remote | None
    secret: int | None
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBegins:
    """The kernel saw a wrapper start. `cgroup_id` is its container's."""

    ktime_ns: int
    cgroup_id: int
    wrapper: TaskInfo
    tree: TreeId


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEnds:
    """The last process of a tree has gone."""

    ktime_ns: int
    cgroup_id: int
    wrapper: TaskInfo
    tree: TreeId


Event = Attempt | TreeBegins | TreeEnds

_TreeEvent = TypeVar("_TreeEvent", TreeBegins, TreeEnds)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptKey:
    """What attempts are counted by."""

    vector: Vector
    layer: Layer
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """What to add to the kernel's two clocks to get nanoseconds since 1970.

    They differ by the time that the machine was suspended. Read them again now and then: the wall clock
    is set while the agent runs.
    """

    monotonic_offset_ns: int
    boottime_offset_ns: int

    @classmethod
    def read(cls, clock_ns: Callable[[int], int] = time.clock_gettime_ns) -> Self:
        """Compare the clocks now."""
        wall_ns = clock_ns(time.CLOCK_REALTIME)
        return cls(
            monotonic_offset_ns=wall_ns - clock_ns(time.CLOCK_MONOTONIC),
            boottime_offset_ns=wall_ns - clock_ns(time.CLOCK_BOOTTIME),
        )


# The name that a tree gave to one of its registered secrets.
NameSecret = Callable[[TreeId, int], str | None]

# Where a process lives, in the words of the schema, by its cgroup id and process id.
Attribute = Callable[[int, int], Mapping[str, str | None]]

_NOWHERE: Mapping[str, str | None] = MappingProxyType(
    dict.fromkeys(("container", "container_id", "pod", "pod_uid", "namespace", "where"))
)


def nowhere(_cgroup_id: int, _pid: int) -> Mapping[str, str | None]:
    """Attribute nothing, as on a machine without Kubernetes."""
    return _NOWHERE


def nameless(_tree: TreeId, _secret: int) -> str | None:
    """Name no secret, as where none is registered."""
    return None


def label(member: IntEnum) -> str:
    """Return the word that events and metrics use for an action, outcome, layer or loss."""
    return member.name.lower()


def kind_of(record: bytes) -> abi.Kind | None:
    """Return what a record is, None for what is no record at all: it has not the size of its kind."""
    if len(record) < ctypes.sizeof(abi.Header):
        return None
    kind = abi.Header.from_buffer_copy(record).kind
    known = _SIZES.get(kind) == len(record)
    return abi.Kind(kind) if known else None


def decode(record: bytes) -> Event:
    """Turn one record of the ring buffer into an event, or raise `DecodeError`."""
    if len(record) < ctypes.sizeof(abi.Header):
        raise DecodeError(f"a record of {len(record)} bytes is shorter than its header")
    header = abi.Header.from_buffer_copy(record)
    if header.size != len(record):
        raise DecodeError(f"a record of {len(record)} bytes says that it has {header.size}")
    match header.kind:
        case abi.Kind.ATTEMPT:
            return _attempt(_exactly(abi.Attempt, record))
        case abi.Kind.TREE_BEGINS:
            return _tree_event(TreeBegins, _exactly(abi.TreeRecord, record))
        case abi.Kind.TREE_ENDS:
            return _tree_event(TreeEnds, _exactly(abi.TreeRecord, record))
        case kind:
            raise DecodeError(f"unknown kind of record {kind}")


def _exactly(structure: type[_Record], record: bytes) -> _Record:
    expected = ctypes.sizeof(structure)
    if len(record) != expected:
        raise DecodeError(f"a {structure.__name__} has {expected} bytes, this record {len(record)}")
    return structure.from_buffer_copy(record)


def _attempt(raw: abi.Attempt) -> Attempt:
    vector = BY_NUMBER.get(raw.vector)
    if vector is None:
        raise DecodeError(f"unknown vector {raw.vector}")
    if raw.flags & ~sum(abi.AttemptFlag):
        raise DecodeError(f"unknown flags {raw.flags:#x}")
    try:
        action, outcome, layer = Action(raw.action), Outcome(raw.outcome), Layer(raw.layer)
    except ValueError as error:
        raise DecodeError(str(error)) from error
    return Attempt(
        ktime_ns=raw.header.ktime_ns,
        cgroup_id=raw.header.cgroup_id,
        vector=vector,
        action=action,
        outcome=outcome,
        layer=layer,
        compat=bool(raw.flags & abi.AttemptFlag.COMPAT),
        selftest=bool(raw.flags & abi.AttemptFlag.SELFTEST),
        second_line=bool(raw.flags & abi.AttemptFlag.SECOND_LINE),
        syscall=raw.syscall if raw.syscall >= 0 else None,
        offender=_task(raw.offender),
        target=_task(raw.target),
        tree=_tree(raw.tree),
        target_cgroup=raw.target_cgroup,
        tracer=Tracer(tgid=raw.tracer_tgid, comm=_text(raw.tracer_comm)) if raw.tracer_tgid else None,
        exe=_path([_text(part.value) for part in raw.exe]),
        file=_text(raw.file) or None,
        remote=_remote(raw.remote),
        secret=raw.secret or None,
        number=raw.number,
    )


def _remote(raw: abi.Endpoint) -> Remote | None:
    address: IPv4Address | IPv6Address
    if raw.family == socket.AF_INET:
        address = IPv4Address(bytes(raw.address[:4]))
    elif raw.family == socket.AF_INET6:
        address = IPv6Address(bytes(raw.address))
    else:
        return None
    return Remote(address=address, port=raw.port, protocol=_PROTOCOLS.get(raw.protocol))


def _tree_event(kind: type[_TreeEvent], raw: abi.TreeRecord) -> _TreeEvent:
    return kind(
        ktime_ns=raw.header.ktime_ns,
        cgroup_id=raw.cgroup,
        wrapper=_task(raw.wrapper),
        tree=_tree(raw.tree),
    )


def _task(raw: abi.Task) -> TaskInfo:
    return TaskInfo(
        start_ns=raw.start_ns,
        tgid=raw.tgid,
        tid=raw.tid,
        ppid=raw.ppid,
        uid=raw.uid,
        comm=_text(raw.comm),
    )


def _tree(raw: abi.Tree) -> TreeId:
    return TreeId(pid=raw.pid, start_ns=raw.start_ns)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


# The hook walks from the file up and gives up after four names; a root's own name is "/".
def _path(parts: list[str]) -> str | None:
    names: list[str] = []
    for part in parts:
        if part == "/":
            return "/" + "/".join(reversed(names))
        if not part:
            break
        names.append(part)
    return "…/" + "/".join(reversed(names)) if names else None


def as_dict(
    event: Event,
    *,
    node: str,
    clocks: Clocks,
    attribute: Attribute = nowhere,
    name_secret: NameSecret = nameless,
) -> dict[str, Any]:
    """Return the event in the schema `cloudtaser.event/v1`, with the same keys for every type.

    `pid` is the process as users know it and `tid` the thread that acted. Unknown values are null.
    `where` is "pod", "node", "unknown", or null where there is no Kubernetes.
    """
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "time": _time(event.ktime_ns + clocks.monotonic_offset_ns),
        "node": node,
        "type": "attempt",
        "vector": None,
        "action": None,
        "outcome": None,
        "layer": None,
        "offender": None,
        "target": None,
        "detail": None,
    }
    match event:
        case Attempt():
            told |= {
                "vector": event.vector.id,
                "action": label(event.action),
                "outcome": label(event.outcome),
                "layer": label(event.layer),
                "offender": _offender(event, clocks, attribute),
                "target": _target(event.target, event.tree, event.target_cgroup, attribute),
                "detail": _detail(event, name_secret),
            }
        case TreeBegins():
            told |= {"type": "tree-begins", "target": _wrapper(event, attribute)}
        case TreeEnds():
            told |= {"type": "tree-ends", "target": _wrapper(event, attribute)}
        case _:
            assert_never(event)
    return told


def _detail(event: Attempt, name_secret: NameSecret) -> dict[str, Any]:
    return {
        "syscall": event.syscall,
        "abi": None if event.syscall is None else "32" if event.compat else "64",
        "file": event.file,
        "second_line": event.second_line,
        "tracer": None
        if event.tracer is None
        else {"pid": event.tracer.tgid, "comm": event.tracer.comm or None},
        "secret": None if event.secret is None else name_secret(event.tree, event.secret),
        "remote": None
        if event.remote is None
        else {
            "address": str(event.remote.address),
            "port": event.remote.port or None,
            "protocol": event.remote.protocol,
        },
    }


def _offender(event: Attempt, clocks: Clocks, attribute: Attribute) -> dict[str, Any]:
    task = event.offender
    started_ns = task.start_ns + clocks.boottime_offset_ns
    return {
        "pid": task.tgid or None,
        "tgid": task.tgid or None,
        "tid": task.tid or None,
        "ppid": task.ppid or None,
        "uid": task.uid,  # 0 is root
        "comm": task.comm or None,
        "exe": event.exe,
        "start_time": _time(started_ns) if task.start_ns else None,
        **attribute(event.cgroup_id, task.tgid),
    }


def _wrapper(event: TreeBegins | TreeEnds, attribute: Attribute) -> dict[str, Any]:
    return _target(event.wrapper, event.tree, event.cgroup_id, attribute)


def _target(task: TaskInfo, tree: TreeId, cgroup_id: int, attribute: Attribute) -> dict[str, Any]:
    return {
        "pid": task.tgid or None,
        "tid": task.tid or None,
        "comm": task.comm or None,
        "tree": str(tree) if tree.pid else None,
        # The cgroup is the wrapper's; what runs under the target's pid by now may be anybody.
        **(attribute(cgroup_id, 0) if tree.pid else _NOWHERE),
    }


def _time(since_1970_ns: int) -> str:
    seconds, nanoseconds = divmod(since_1970_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
