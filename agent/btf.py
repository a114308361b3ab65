"""The node's BTF into a C header whose structs have exactly the running kernel's offsets.

Only the members that the programs read are named and everything between them is padding, so that an
offset is right by construction. BCC then needs no kernel headers. A member that a kernel lacks becomes a
missing `CT_HAVE_…` definition; a version is never compared.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from agent.errors import BtfError
from agent.libbpf import Libbpf

VMLINUX = "/sys/kernel/btf/vmlinux"

KIND_STRUCT = 4
KIND_ENUM = 6
KIND_TYPEDEF = 8
KIND_FUNC = 12
# Types that change nothing about a layout: typedef, volatile, const, restrict, type tag.
_TRANSPARENT = frozenset({8, 9, 10, 11, 18})
_COMPOUND = frozenset({4, 5})  # struct, union
# Nobody nests typedefs or anonymous structs like that.
_DEEPEST = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member that the programs read.

    `paths` are dotted ways to it, newest kernel last; the first that exists counts. `declaration` is its
    C declaration and `size_bytes` what that declares. An `optional` one defines `CT_HAVE_<name>`.
    """

    paths: tuple[str, ...]
    declaration: str
    size_bytes: int
    optional: str | None = None

    @property
    def field(self) -> str:
        """The name of the C field that `declaration` declares."""
        return self.declaration.split()[-1].lstrip("*").partition("[")[0]


def _pointer(path: str, to: str, name: str | None = None, optional: str | None = None) -> Member:
    name = name or path
    return Member(paths=(path,), declaration=f"struct {to} *{name}", size_bytes=8, optional=optional)


def _scalar(
    path: str, c_type: str, size_bytes: int, name: str | None = None, optional: str | None = None
) -> Member:
    return Member(
        paths=(path,), declaration=f"{c_type} {name or path}", size_bytes=size_bytes, optional=optional
    )


STRUCTS: dict[str, tuple[Member, ...]] = {
    "task_struct": (
        _scalar("thread_info.status", "__u32", 4, "thread_status", optional="THREAD_STATUS"),
        _scalar("flags", "unsigned int", 4),
        _scalar("ptrace", "unsigned int", 4),
        _pointer("mm", "mm_struct"),
        _scalar("pid", "int", 4),
        _scalar("tgid", "int", 4),
        _pointer("real_parent", "task_struct"),
        _pointer("parent", "task_struct"),
        _pointer("group_leader", "task_struct"),
        _scalar("nvcsw", "unsigned long", 8),
        _scalar("nivcsw", "unsigned long", 8),
        _scalar("start_boottime", "__u64", 8),
        Member(paths=("comm",), declaration="char comm[16]", size_bytes=16),
        _pointer("files", "files_struct"),
        _pointer("signal", "signal_struct"),
        _scalar("pending.signal.sig", "__u64", 8, "pending_signals"),
        _pointer("ptraced.next", "list_head", "ptraced_next"),
        _pointer("thread_pid", "pid"),
        _pointer("nsproxy", "nsproxy"),
        _pointer("cgroups", "css_set"),
    ),
    "signal_struct": (_scalar("live.counter", "int", 4, "live"), _scalar("flags", "unsigned int", 4)),
    "pid": (_scalar("level", "unsigned int", 4),),
    "nsproxy": (_scalar("mnt_ns", "void *", 8),),
    # The first of an array of pointers; the program knows which one it wants.
    "css_set": (_pointer("subsys", "cgroup_subsys_state"), _pointer("dfl_cgrp", "cgroup")),
    "cgroup_subsys_state": (_pointer("cgroup", "cgroup"),),
    "cgroup": (
        _pointer("self.parent", "cgroup_subsys_state", "up"),
        _pointer("kn", "kernfs_node"),
        _pointer("root", "cgroup_root"),
    ),
    "kernfs_node": (_scalar("id", "__u64", 8),),
    "cgroup_root": (_scalar("hierarchy_id", "int", 4),),
    "mm_struct": (
        _pointer("owner", "task_struct", optional="MM_OWNER"),
        _pointer("exe_file", "file"),
        _scalar("start_code", "unsigned long", 8),
    ),
    "file": (
        _scalar("f_mode", "unsigned int", 4),
        _pointer("f_path.dentry", "dentry", "f_dentry"),
        _pointer("f_inode", "inode"),
        _scalar("private_data", "void *", 8),
    ),
    "inode": (
        _pointer("i_sb", "super_block"),
        _scalar("i_ino", "unsigned long", 8),
        _scalar("i_private", "void *", 8),
    ),
    "super_block": (_scalar("s_dev", "__u32", 4), _scalar("s_magic", "unsigned long", 8)),
    "dentry": (
        _scalar("d_name.len", "__u32", 4, "d_name_len"),
        _pointer("d_parent", "dentry"),
        # The inline name; renamed and grown in 6.14. The programs read 32 bytes of it.
        Member(paths=("d_iname", "d_shortname"), declaration="__u64 d_inline[4]", size_bytes=32),
    ),
    "files_struct": (_pointer("fdt", "fdtable"),),
    "fdtable": (_scalar("max_fds", "unsigned int", 4), _scalar("fd", "void **", 8)),
    "linux_binprm": (_pointer("file", "file"),),
    "kernel_siginfo": (_scalar("si_code", "int", 4),),
    "pt_regs": (
        _scalar("orig_ax", "unsigned long", 8),
        _scalar("bx", "unsigned long", 8),
        _scalar("di", "unsigned long", 8),
    ),
}

# Offsets that the programs add to an address themselves, where a typed load cannot go.
OFFSETS: dict[str, tuple[str, str]] = {
    "CT_PROC_INODE_PID": ("proc_inode", "pid"),
    "CT_PROC_INODE_VFS": ("proc_inode", "vfs_inode"),
    "CT_PID_TASKS": ("pid", "tasks"),
    "CT_TASK_PID_LINKS": ("task_struct", "pid_links"),
    "CT_TASK_PTRACE_ENTRY": ("task_struct", "ptrace_entry"),
    "CT_TASK_TGID": ("task_struct", "tgid"),
}

# Helpers that some supported kernels lack: CT_HAVE_<name> is defined where bpf_func_id has them.
HELPERS = ("get_current_task_btf", "task_pt_regs")

# Controllers of cgroup v1 by whose hierarchy pods may be told apart: CT_SUBSYS_<NAME> is their number.
CONTROLLERS = ("memory", "pids", "cpu")


class Btf:
    """The type information in `path`; a context manager that frees it.

    Raises:
        BtfError: there is none, or it cannot be read.

    """

    def __init__(self, libbpf: Libbpf, path: str = VMLINUX) -> None:
        """Parse the file at `path`."""
        self._libbpf = libbpf
        self._handle = libbpf.btf__parse(path.encode(), None)
        # libbpf 1.x returns NULL on error; 0.x an error pointer, which is a small negative number.
        if not self._handle or self._handle >= (1 << 64) - 4096:
            message = f"{path} is missing or unreadable: boot a kernel built with CONFIG_DEBUG_INFO_BTF=y"
            raise BtfError(message)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the parsed types."""
        self._libbpf.btf__free(self._handle)

    def find(self, name: str, kind: int) -> int | None:
        """Return the id of the type called `name` of BTF kind `kind`, or None."""
        found = self._libbpf.btf__find_by_name_kind(self._handle, name.encode(), kind)
        return found if found > 0 else None

    def offset(self, struct: str, path: str) -> int | None:
        """Return the byte offset of the dotted member `path` in `struct`, or None where it is absent."""
        type_id, bits = self.find(struct, KIND_STRUCT), 0
        if type_id is None:
            return None
        for part in path.split("."):
            found = next(((at, of) for name, at, of in self._members(type_id) if name == part), None)
            if found is None:
                return None
            bits += found[0]
            type_id = self._plain(found[1])
        return bits // 8

    def enumerators(self, enum: str) -> dict[str, int]:
        """Return the names and values of `enum`; empty where there is none."""
        type_id = self.find(enum, KIND_ENUM)
        if type_id is None:
            return {}
        count = self._words(type_id, 3)[1] & 0xFFFF
        raw = self._words(type_id, 3 + 2 * count)[3:]
        return {self._name(raw[2 * i]): raw[2 * i + 1] for i in range(count)}

    def _words(self, type_id: int, count: int) -> tuple[int, ...]:
        address = self._libbpf.btf__type_by_id(self._handle, type_id)
        if not address:
            message = f"the kernel's BTF refers to type {type_id}, which it does not have"
            raise BtfError(message)
        return tuple((ctypes.c_uint32 * count).from_address(address))

    def _name(self, offset: int) -> str:
        name: bytes | None = self._libbpf.btf__name_by_offset(self._handle, offset)
        return name.decode(errors="replace") if name else ""

    def _plain(self, type_id: int) -> int:
        for _ in range(_DEEPEST):
            _, info, of = self._words(type_id, 3)
            if (info >> 24) & 0x1F not in _TRANSPARENT:
                return type_id
            type_id = of
        raise BtfError("the kernel's BTF has types that refer to each other in a ring")

    def _members(self, type_id: int, base_bits: int = 0, depth: int = 0) -> Iterator[tuple[str, int, int]]:
        # Name, bit offset and type id, with anonymous structs and unions folded in.
        if depth > _DEEPEST:
            raise BtfError("the kernel's BTF has structs that contain themselves")
        info = self._words(type_id, 3)[1]
        if (info >> 24) & 0x1F not in _COMPOUND:
            return
        count, has_bit_sizes = info & 0xFFFF, info >> 31
        raw = self._words(type_id, 3 + 3 * count)[3:]
        for i in range(count):
            name, of, at = self._name(raw[3 * i]), raw[3 * i + 1], raw[3 * i + 2]
            bits = base_bits + (at & 0xFFFFFF if has_bit_sizes else at)
            if name:
                yield name, bits, of
            else:
                yield from self._members(self._plain(of), bits, depth + 1)


def features(btf: Btf) -> frozenset[str]:
    """Return the optional members and helpers that this kernel has, by the name in `CT_HAVE_<name>`."""
    helpers = btf.enumerators("bpf_func_id")
    members = {
        member.optional
        for struct, listed in STRUCTS.items()
        for member in listed
        if member.optional and any(btf.offset(struct, path) is not None for path in member.paths)
    }
    return frozenset(members | {name for name in HELPERS if f"BPF_FUNC_{name}" in helpers})


def header(btf: Btf) -> str:
    """Return the C header for this kernel.

    Raises:
        BtfError: a struct or member that every layer needs is absent.

    """
    lines = [f"struct {name};" for name in STRUCTS]
    lines.append("struct list_head;")
    for struct, members in STRUCTS.items():
        lines += _struct(btf, struct, members)
    for macro, (struct, path) in OFFSETS.items():
        offset = btf.offset(struct, path)
        if offset is None:
            message = f"this kernel's BTF has no {struct}.{path}"
            raise BtfError(message)
        lines.append(f"#define {macro} {offset}")
    present = btf.enumerators("bpf_func_id")
    controllers = btf.enumerators("cgroup_subsys_id")
    lines += [
        f"#define CT_SUBSYS_{controller.upper()} {controllers[name]}"
        for controller in CONTROLLERS
        if (name := f"{controller}_cgrp_id") in controllers
    ]
    lines += [
        f"#define CT_HAVE_{helper.upper()} {present[name]}"
        for helper in HELPERS
        if (name := f"BPF_FUNC_{helper}") in present
    ]
    return "\n".join(lines) + "\n"


def _struct(btf: Btf, struct: str, members: Sequence[Member]) -> list[str]:
    placed: list[tuple[int, Member]] = []
    lines: list[str] = []
    for member in members:
        offset = next((at for path in member.paths if (at := btf.offset(struct, path)) is not None), None)
        if offset is not None:
            placed.append((offset, member))
            if member.optional:
                lines.append(f"#define CT_HAVE_{member.optional} 1")
        elif not member.optional:
            message = f"this kernel's BTF has no {struct}.{' or '.join(member.paths)}"
            raise BtfError(message)
    lines.append(f"struct {struct} {{")
    at = 0
    for offset, member in sorted(placed, key=lambda item: item[0]):
        if offset > at:
            lines.append(f"\tchar pad_{at}[{offset - at}];")
        lines.append(f"\t{member.declaration};")
        at = offset + member.size_bytes
    lines.append("};")
    # The compiler must not have added padding of its own between ours.
    lines += [
        f"_Static_assert(__builtin_offsetof(struct {struct}, {member.field}) == {offset},"
        f' "{struct}.{member.field}");'
        for offset, member in placed
    ]
    return lines
