"""The catalogue: every way of getting at a secret that the agent watches.

Documentation, metric labels, the check against the C enum and the self-test derive from `CATALOGUE`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType


class Action(IntEnum):
    """What the configuration asks for; the numbers are `enum ct_action`."""

    DETECT = 0
    DENY = 1
    KILL = 2


class Outcome(IntEnum):
    """What a hook did; the numbers are `enum ct_outcome`."""

    DETECTED = 0
    DENIED = 1
    KILLED = 2


class Layer(IntEnum):
    """How a hook is attached; the numbers are `enum ct_layer`."""

    LSM = 0
    FMOD_RET = 1
    TRACEPOINT = 2


class Mode(StrEnum):
    """The presets."""

    DETECT = "detect"
    ENFORCE = "enforce"
    STRICT = "strict"


class Group(StrEnum):
    """What the vector aims at."""

    TREE_MEMORY = "tree-memory"
    LEAK = "leak"  # from inside: the offender is of the tree itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """One way of getting at a secret.

    `number` is `enum ct_vector`, fixed for ever like `id`. `hooks` names, for each layer that can see
    the attempt, the programs of `agent.hooks` that must be attached for it.
    """

    number: int
    id: str
    group: Group
    attempt: str
    enforce: Action
    hooks: Mapping[Layer, tuple[str, ...]] = field(hash=False)

    @property
    def targeted(self) -> bool:
        """Whether nobody makes this attempt by accident, so that `enforce` kills it."""
        return self.enforce is Action.KILL

    def action(self, mode: Mode) -> Action:
        """Return what the preset asks for."""
        if mode is Mode.DETECT:
            return Action.DETECT
        if mode is Mode.STRICT and self.enforce is Action.DENY:
            return Action.KILL
        return self.enforce


def outcome(action: Action, layer: Layer) -> Outcome:
    """Return what a hook of `layer` does when asked for `action`: a tracepoint cannot deny."""
    if layer is Layer.TRACEPOINT and action is Action.DENY:
        return Outcome.DETECTED
    return Outcome(action)


def _hooks(
    lsm: tuple[str, ...], fmod_ret: tuple[str, ...], tracepoint: tuple[str, ...]
) -> Mapping[Layer, tuple[str, ...]]:
    return MappingProxyType({Layer.LSM: lsm, Layer.FMOD_RET: fmod_ret, Layer.TRACEPOINT: tracepoint})


# A remote access is one check in the kernel whatever its system call, so most vectors share hooks.
_ACCESS = _hooks(("lsm_ptrace_access",), ("fmod_ptrace_access",), ("remote_memory",))
_ATTACH = _hooks(
    ("lsm_ptrace_access",),
    ("fmod_ptrace_access",),
    ("syscall_exit", "wait_for_stop", "undo_stop"),
)
_MEMORY_FILE = _hooks(
    ("lsm_file_open", "lsm_task_to_inode", "lsm_ptrace_access"),
    ("fmod_file_open", "fmod_task_to_inode", "fmod_ptrace_access"),
    ("syscall_exit", "remote_memory"),
)
_FILE = _hooks(
    ("lsm_file_open", "lsm_task_to_inode"),
    ("fmod_file_open", "fmod_task_to_inode"),
    ("syscall_exit",),
)

CATALOGUE: tuple[Vector, ...] = (
    Vector(
        number=0,
        id="ptrace-attach",
        group=Group.TREE_MEMORY,
        attempt="ptrace ATTACH or SEIZE of a process of the tree: gdb, strace, gcore, criu",
        enforce=Action.KILL,
        hooks=_ATTACH,
    ),
    Vector(
        number=1,
        id="ptrace-traceme",
        group=Group.TREE_MEMORY,
        attempt="a debugger starts the wrapper as its child; a process hands itself to its parent",
        enforce=Action.KILL,
        hooks=_hooks(("lsm_ptrace_traceme",), ("fmod_ptrace_traceme",), ("syscall_exit",)),
    ),
    Vector(
        number=2,
        id="process-vm-read",
        group=Group.TREE_MEMORY,
        attempt="process_vm_readv from a process of the tree",
        enforce=Action.KILL,
        hooks=_ACCESS,
    ),
    Vector(
        number=3,
        id="process-vm-write",
        group=Group.TREE_MEMORY,
        attempt="process_vm_writev into a process of the tree",
        enforce=Action.KILL,
        hooks=_ACCESS,
    ),
    Vector(
        number=4,
        id="proc-mem",
        group=Group.TREE_MEMORY,
        attempt="/proc/P/mem or /proc/P/task/T/mem, by any path to it",
        enforce=Action.KILL,
        hooks=_MEMORY_FILE,
    ),
    Vector(
        number=5,
        id="proc-environ",
        group=Group.TREE_MEMORY,
        attempt="/proc/P/environ; ps reads it",
        enforce=Action.DENY,
        hooks=_MEMORY_FILE,
    ),
    Vector(
        number=6,
        id="proc-maps",
        group=Group.TREE_MEMORY,
        attempt="/proc/P/maps, smaps*, numa_maps, pagemap, map_files, auxv, clear_refs; lsof reads maps",
        enforce=Action.DENY,
        hooks=_FILE,
    ),
    Vector(
        number=7,
        id="proc-stack",
        group=Group.TREE_MEMORY,
        attempt="/proc/P/stack, syscall, personality",
        enforce=Action.DENY,
        hooks=_FILE,
    ),
    Vector(
        number=8,
        id="pidfd-getfd",
        group=Group.TREE_MEMORY,
        attempt="pidfd_getfd takes a descriptor of a process of the tree",
        enforce=Action.KILL,
        hooks=_hooks(("lsm_ptrace_access",), ("fmod_ptrace_access",), ("syscall_exit",)),
    ),
)

BY_ID: Mapping[str, Vector] = MappingProxyType({vector.id: vector for vector in CATALOGUE})
BY_NUMBER: Mapping[int, Vector] = MappingProxyType({vector.number: vector for vector in CATALOGUE})
