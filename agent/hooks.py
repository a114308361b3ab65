"""Every BPF program: its C function, its name in the kernel, and where it attaches.

A program's kernel name has 15 characters at most and begins with `cloudtaser_`, so that
`bpftool prog list | grep cloudtaser` finds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from agent.vectors import Layer


class Attach(Enum):
    """How a program attaches; the value is (program type, attach type) of the bpf(2) ABI."""

    TRACEPOINT = (26, 23)  # BPF_PROG_TYPE_TRACING, BPF_TRACE_RAW_TP
    FENTRY = (26, 24)  # BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY
    FMOD_RET = (26, 26)  # BPF_PROG_TYPE_TRACING, BPF_MODIFY_RETURN
    LSM = (29, 27)  # BPF_PROG_TYPE_LSM, BPF_LSM_MAC


class While(Enum):
    """As long as what a program is attached: nobody pays for what nobody needs."""

    RUNNING = "the agent runs"
    PROTECTING = "a process is protected"
    SECRETS = "a secret is registered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One program and its place in the kernel.

    `function` is the C function in `bpf_programs/<source>`; `target` is the place's name in the kernel's
    BTF, without the prefixes that depend on how it is attached. `needs` are features of `agent.btf` that the
    function is not compiled without. `kallsyms`: it tells kernel code paths apart by address.
    `reads_kernel`: it needs bpf_probe_read_kernel, which lockdown=confidentiality refuses.
    """

    function: str
    source: str
    name: str
    attach: Attach
    target: str
    needs: tuple[str, ...] = ()
    kallsyms: bool = False
    reads_kernel: bool = False
    attached: While = While.RUNNING

    @property
    def btf_name(self) -> str:
        """The BTF type whose presence means that this kernel has the place."""
        match self.attach:
            case Attach.TRACEPOINT:
                return f"btf_trace_{self.target}"
            case Attach.LSM:
                return f"bpf_lsm_{self.target}"
            case _:
                return self.target


def _hook(function: str, source: str, letters: str, attach: Attach, target: str, **more: object) -> Hook:
    return Hook(
        function=function,
        source=f"{source}.bpf.c",
        name=f"cloudtaser_{letters}",
        attach=attach,
        target=target,
        **more,  # type: ignore[arg-type]
    )


_CURRENT = ("get_current_task_btf",)
_CURRENT_AND_REGISTERS = ("get_current_task_btf", "task_pt_regs")

_HOOKS = (
    _hook("tree_fork", "trees", "fork", Attach.TRACEPOINT, "sched_process_fork"),
    _hook("tree_rename", "trees", "comm", Attach.TRACEPOINT, "task_rename"),
    _hook("tree_exec", "trees", "exec", Attach.TRACEPOINT, "sched_process_exec"),
    _hook("tree_exit", "trees", "ends", Attach.TRACEPOINT, "sched_process_exit"),
    _hook("tree_free", "trees", "free", Attach.TRACEPOINT, "sched_process_free"),
    _hook("pod_mkdir", "pods", "cgrp", Attach.TRACEPOINT, "cgroup_mkdir"),
    _hook("lsm_ptrace_access", "ptrace", "ptac", Attach.LSM, "ptrace_access_check"),
    _hook("lsm_ptrace_traceme", "ptrace", "ptme", Attach.LSM, "ptrace_traceme"),
    _hook("lsm_file_open", "proc_files", "open", Attach.LSM, "file_open"),
    _hook("lsm_task_to_inode", "proc_files", "inod", Attach.LSM, "task_to_inode"),
    _hook("fmod_ptrace_access", "ptrace", "ptac", Attach.FMOD_RET, "security_ptrace_access_check"),
    _hook("fmod_ptrace_traceme", "ptrace", "ptme", Attach.FMOD_RET, "security_ptrace_traceme"),
    _hook("fmod_file_open", "proc_files", "open", Attach.FMOD_RET, "security_file_open"),
    _hook("fmod_ptrace_access_again", "ptrace", "ptag", Attach.FMOD_RET, "security_ptrace_access_check"),
    _hook("fmod_ptrace_traceme_again", "ptrace", "ptmg", Attach.FMOD_RET, "security_ptrace_traceme"),
    _hook("fmod_file_open_again", "proc_files", "opag", Attach.FMOD_RET, "security_file_open"),
    # A function that returns nothing has no return value to modify; it is watched at its entry.
    _hook("fmod_task_to_inode", "proc_files", "inod", Attach.FENTRY, "security_task_to_inode"),
    _hook(
        "remote_memory",
        "remote_memory",
        "mmap",
        Attach.TRACEPOINT,
        "mmap_lock_start_locking",
        needs=(*_CURRENT_AND_REGISTERS, "MM_OWNER"),
        kallsyms=True,
    ),
    _hook(
        "remote_memory_again",
        "remote_memory",
        "lock",
        Attach.TRACEPOINT,
        "mmap_lock_acquire_returned",
        needs=(*_CURRENT_AND_REGISTERS, "MM_OWNER"),
        kallsyms=True,
    ),
    _hook(
        "wait_for_stop",
        "remote_memory",
        "wait",
        Attach.TRACEPOINT,
        "sched_wait_task",
        needs=_CURRENT_AND_REGISTERS,
    ),
    _hook(
        "syscall_exit",
        "syscall_exit",
        "exit",
        Attach.TRACEPOINT,
        "sys_exit",
        needs=_CURRENT,
        reads_kernel=True,
        attached=While.PROTECTING,
    ),
    _hook(
        "undo_stop",
        "syscall_exit",
        "sign",
        Attach.TRACEPOINT,
        "signal_deliver",
        needs=_CURRENT,
        reads_kernel=True,
    ),
    # A system call that treats 32-bit callers alike has no compat entry, or one that is never called.
    _hook("enter_ptrace_64", "syscall_entry", "sysc", Attach.FENTRY, "__x64_sys_ptrace"),
    _hook("enter_ptrace_32", "syscall_entry", "sysc", Attach.FENTRY, "__ia32_compat_sys_ptrace"),
    _hook("enter_vm_read_64", "syscall_entry", "sysc", Attach.FENTRY, "__x64_sys_process_vm_readv"),
    _hook("enter_vm_read_32", "syscall_entry", "sysc", Attach.FENTRY, "__ia32_sys_process_vm_readv"),
    _hook("enter_vm_write_64", "syscall_entry", "sysc", Attach.FENTRY, "__x64_sys_process_vm_writev"),
    _hook("enter_vm_write_32", "syscall_entry", "sysc", Attach.FENTRY, "__ia32_sys_process_vm_writev"),
    _hook("enter_getfd_64", "syscall_entry", "sysc", Attach.FENTRY, "__x64_sys_pidfd_getfd"),
    _hook("enter_getfd_32", "syscall_entry", "sysc", Attach.FENTRY, "__ia32_sys_pidfd_getfd"),
)

HOOKS: Mapping[str, Hook] = MappingProxyType({hook.function: hook for hook in _HOOKS})

# Needed on every layer.
FOLLOW_TREES = ("tree_fork", "tree_rename", "tree_exec", "tree_exit", "tree_free")

# Needed on every layer where there are pods.
FOLLOW_PODS = ("pod_mkdir",)

# Behind the layer's own programs where the kernel has them; optional there. A program that another task
# was preempted in is skipped on that processor, so what tracepoints and fmod_ret stop, two programs stop.
_AGAIN = ("remote_memory_again",)
SECOND_LINE: Mapping[Layer, tuple[str, ...]] = MappingProxyType(
    {
        Layer.LSM: ("remote_memory", "wait_for_stop", *_AGAIN),
        Layer.FMOD_RET: (
            "remote_memory",
            "wait_for_stop",
            "fmod_ptrace_access_again",
            "fmod_ptrace_traceme_again",
            "fmod_file_open_again",
            *_AGAIN,
        ),
        Layer.TRACEPOINT: _AGAIN,
    }
)

# Needed by LSM and fmod_ret where a program cannot ask which system call its thread is in.
NOTE_SYSCALLS = tuple(hook.function for hook in _HOOKS if hook.source == "syscall_entry.bpf.c")
