"""What this node can do: which layer serves each vector, and for each "no" what would change it.

Every answer comes from asking: BTF for places and members, the kernel itself (by loading a program that does
nothing) for what it permits. A version is never compared.
"""

import ctypes
import errno
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from agent.btf import KIND_FUNC, KIND_TYPEDEF, Btf, features
from agent.errors import NodeError
from agent.hooks import FOLLOW_PODS, FOLLOW_TREES, HOOKS, NOTE_SYSCALLS, SECOND_LINE, Attach, Hook
from agent.libbpf import Libbpf, ProgLoadOpts
from agent.vectors import CATALOGUE, Layer, Vector

# mov r0, 0; exit
_NOTHING = bytes.fromhex("b7000000000000009500000000000000")

# The place on which each way to attach is tried. Nothing is attached: loading is what is refused.
_TRIAL = {
    Attach.TRACEPOINT: "tree_fork",
    Attach.FENTRY: "fmod_task_to_inode",
    Attach.FMOD_RET: "fmod_ptrace_access",
    Attach.LSM: "lsm_ptrace_access",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found out about the node.

    `lsms` is the boot list of security modules, None where securityfs cannot be read. `refused` names the
    ways to attach that the kernel refused, with the error.
    """

    kernel: str
    features: frozenset[str]
    hooks: frozenset[str]
    lsms: tuple[str, ...] | None
    lockdown: str
    kernel_addresses: bool
    refused: Mapping[Attach, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What becomes of one vector: its layer, or None and what would change that."""

    vector: Vector
    layer: Layer | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The layer chosen for the node, the programs to load for it, and what each vector gets.

    `weaker` says for each better layer why this node does not have it.
    """

    layer: Layer
    required: tuple[str, ...]
    optional: tuple[str, ...]
    coverage: tuple[Coverage, ...]
    weaker: Mapping[Layer, str]


def target_id(btf: Btf, hook: Hook) -> int | None:
    """Return the BTF id of the place where `hook` attaches, or None where this kernel has none."""
    kind = KIND_TYPEDEF if hook.attach is Attach.TRACEPOINT else KIND_FUNC
    return btf.find(hook.btf_name, kind)


def examine(libbpf: Libbpf, btf: Btf, root: Path = Path("/")) -> Facts:
    """Find out what the node can do; `root` is where its /proc and /sys are.

    Raises:
        NodeError: not root, or a machine that the programs are not written for.

    """
    if os.geteuid() != 0:
        message = "loading programs into the kernel takes root: run as root, or in a privileged container"
        raise NodeError(message)
    if os.uname().machine != "x86_64":
        message = f"this release knows x86-64 only, and this is {os.uname().machine}"
        raise NodeError(message)
    has = features(btf)
    ids = {function: target_id(btf, hook) for function, hook in HOOKS.items()}
    return Facts(
        kernel=os.uname().release,
        features=has,
        hooks=frozenset(
            function
            for function, hook in HOOKS.items()
            if ids[function] is not None and has >= set(hook.needs)
        ),
        lsms=_lsms(root / "sys/kernel/security/lsm"),
        lockdown=_lockdown(root / "sys/kernel/security/lockdown"),
        kernel_addresses=_addresses_visible(root / "proc/kallsyms"),
        refused={
            attach: error
            for attach, function in _TRIAL.items()
            if (error := _try_to_load(libbpf, attach, ids[function])) is not None
        },
    )


def plan(facts: Facts, wanted: Layer | None, *, pods: bool = False) -> Plan:
    """Choose a layer: the one that is wanted, or the best that this node has. With `pods`, follow those too.

    Raises:
        NodeError: the wanted layer, or every layer, is refused by this node.

    """
    whys = {layer: _why_not(facts, layer) for layer in Layer}
    if wanted is not None and (why := whys[wanted]):
        message = f"layer {wanted.name.lower()} cannot be used on this node: {why}"
        raise NodeError(message)
    layer = wanted if wanted is not None else next((at for at in Layer if not whys[at]), None)
    if layer is None:
        message = "no layer can be used on this node: " + "; ".join(
            f"{at.name.lower()}: {why}" for at, why in whys.items()
        )
        raise NodeError(message)
    coverage = tuple(_coverage(facts, vector, layer) for vector in CATALOGUE)
    covered = [each.vector for each in coverage if each.layer is not None]
    required = dict.fromkeys((*FOLLOW_TREES, *(FOLLOW_PODS if pods else ())))
    for vector in covered:
        required.update(dict.fromkeys(vector.hooks[layer]))
    optional = [function for function in SECOND_LINE[layer] if not _why_no_hook(facts, function)]
    if layer is not Layer.TRACEPOINT and "task_pt_regs" not in facts.features:
        required.update({function: None for function in NOTE_SYSCALLS if not _why_no_hook(facts, function)})
    return Plan(
        layer=layer,
        required=tuple(required),
        optional=tuple(optional),
        coverage=coverage,
        weaker={at: whys[at] or "not chosen" for at in Layer if at < layer},
    )


def _coverage(facts: Facts, vector: Vector, layer: Layer) -> Coverage:
    reasons = [why for function in vector.hooks[layer] if (why := _why_no_hook(facts, function))]
    if reasons:
        return Coverage(vector=vector, layer=None, reason="; ".join(dict.fromkeys(reasons)))
    return Coverage(vector=vector, layer=layer, reason="")


def _why_not(facts: Facts, layer: Layer) -> str:
    """Return why no vector can be served by `layer`; empty where some can."""
    if layer is Layer.LSM:
        if facts.lsms is None:
            return "the boot list of LSMs is unknown: mount -t securityfs none /sys/kernel/security"
        if "bpf" not in facts.lsms:
            return f"boot with bpf in the list of LSMs: lsm={','.join((*facts.lsms, 'bpf'))}"
    attach = {Layer.LSM: Attach.LSM, Layer.FMOD_RET: Attach.FMOD_RET, Layer.TRACEPOINT: Attach.TRACEPOINT}[
        layer
    ]
    if attach in facts.refused:
        return f"this kernel refuses such programs ({facts.refused[attach]})"
    for function in FOLLOW_TREES:
        if why := _why_no_hook(facts, function):
            return f"trees cannot be followed: {why}"
    reasons = [_coverage(facts, vector, layer) for vector in CATALOGUE]
    if all(each.layer is None for each in reasons):
        return reasons[0].reason
    return ""


def _why_no_hook(facts: Facts, function: str) -> str:
    hook = HOOKS[function]
    if hook.attach in facts.refused:
        return f"this kernel refuses {hook.attach.name.lower()} programs ({facts.refused[hook.attach]})"
    if function not in facts.hooks:
        missing = sorted(set(hook.needs) - facts.features)
        return f"this kernel has no {', '.join(missing) or hook.target}: use a newer one"
    if hook.kallsyms and not facts.kernel_addresses:
        return "kernel addresses are hidden: set sysctl kernel.kptr_restrict to 1"
    if hook.reads_kernel and facts.lockdown == "confidentiality":
        return "lockdown=confidentiality refuses bpf_probe_read_kernel, which the tracepoint layer needs here"
    return ""


def _lsms(path: Path) -> tuple[str, ...] | None:
    try:
        return tuple(path.read_text().strip().split(","))
    except OSError:
        return None


def _lockdown(path: Path) -> str:
    try:
        chosen = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return "none"
    return chosen[1] if chosen else "none"


def _addresses_visible(path: Path) -> bool:
    # Hidden addresses are all zero. The first symbols may have low ones: they are offsets into a
    # processor's own memory.
    try:
        with path.open() as lines:
            return any(int(line.split()[0], 16) for line in islice(lines, 100))
    except (OSError, ValueError, IndexError):
        return False


def _try_to_load(libbpf: Libbpf, attach: Attach, target: int | None) -> str | None:
    if target is None:
        return "this kernel has no place for them"
    program_type, attach_type = attach.value
    options = ProgLoadOpts(
        sz=ctypes.sizeof(ProgLoadOpts), expected_attach_type=attach_type, attach_btf_id=target
    )
    code = ctypes.create_string_buffer(_NOTHING)
    descriptor = libbpf.bpf_prog_load(
        program_type, b"cloudtaser_try", b"GPL", code, len(_NOTHING) // 8, ctypes.byref(options)
    )
    if descriptor < 0:
        return errno.errorcode.get(-descriptor, str(-descriptor))
    os.close(descriptor)
    return None


def describe(plan: Plan) -> Iterable[str]:
    """Return one line for each vector and for each better layer that the node lacks."""
    for layer, why in plan.weaker.items():
        yield f"layer {layer.name.lower()} is not used: {why}"
    for each in plan.coverage:
        layer_name = each.layer.name.lower() if each.layer is not None else "none"
        yield f"{each.vector.id}: {layer_name}{': ' + each.reason if each.reason else ''}"
