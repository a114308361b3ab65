"""The compiler proves that the reader of BTF finds each member where the compiler put it."""

import os
import re
import subprocess

import pytest

from agent.btf import OFFSETS, STRUCTS, VMLINUX, Btf, features, header
from agent.errors import BtfError
from agent.libbpf import Libbpf
from agent.loader import kernel_tree

COMPILERS = ["gcc", "clang -target bpf"]

LAYOUT = """
typedef unsigned long long u64;
enum colour { RED, GREEN = 7, LAST = 4000000000u };
struct point { char tag; int x, y; };
typedef struct point point_t;
typedef const point_t same_t;
typedef struct { short low; int high; } unnamed_t;
struct flagged { unsigned int first : 3, second : 13; u64 whole; unsigned int third : 17; };
struct outer {
	char c; union {
		struct { char lead; u64 in_struct; };
		u64 in_union;
		struct { union { char deep[24]; int deeper; }; int after; };
	};
	int array[3];
	point_t named;
	same_t same;
	volatile unnamed_t unnamed;
	point_t *const pointer;
	const char *const *strings;
	struct point points[2];
	struct flagged flagged; enum colour colour; void (*function)(int);
	struct { struct point within; } holder; char flexible[];
};
"""
PATHS = [
    "c",
    "in_union",
    "deeper",
    "after",
    "array",
    "named.y",
    "same.y",
    "unnamed.high",
    "pointer",
    "points",
    "flagged.whole",
    "function",
    "holder.within.y",
    "flexible",
]

# Like the newest kernel where an older one has a name or a place of its own, and the other way round.
NEW_KERNEL = """
typedef unsigned int u32; typedef unsigned long long u64; typedef long atomic_long_t;
enum cgroup_subsys_id { cpuset_cgrp_id, cpu_cgrp_id, memory_cgrp_id, pids_cgrp_id };
enum bpf_func_id { BPF_FUNC_unspec, BPF_FUNC_get_current_task_btf = 158, BPF_FUNC_task_pt_regs = 175 };
struct list_head { struct list_head *next, *prev; };
struct hlist_node { struct hlist_node *next, **pprev; };
struct hlist_head { struct hlist_node *first; };
struct mm_struct { struct { char counts[72]; unsigned long start_code, end_code; struct task_struct *owner;
	struct file *exe_file; }; };
struct sigset { unsigned long sig[1]; };
struct sigpending { struct list_head list; struct sigset signal; };
struct thread_info { unsigned long flags; u32 status; };
struct task_struct {
	struct thread_info thread_info; unsigned int flags, ptrace; struct mm_struct *mm; int pid, tgid;
	struct task_struct *real_parent, *parent, *group_leader; unsigned long nvcsw, nivcsw;
	u64 start_boottime; struct hlist_node pid_links[4]; struct list_head ptraced, ptrace_entry;
	char comm[16]; struct files_struct *files; struct signal_struct *signal;
	struct sigpending pending; struct pid *thread_pid; struct nsproxy *nsproxy; struct css_set *cgroups;
};
struct path { void *mnt; struct dentry *dentry; };
struct file { unsigned int f_mode; union { struct path f_path, __f_path; }; void *private_data;
	struct inode *f_inode; };
struct inode { short i_mode; struct super_block *i_sb; unsigned long i_ino; void *i_private; };
struct super_block { struct list_head s_list; u32 s_dev; unsigned long s_magic; };
struct qstr { union { struct { u32 hash, len; }; u64 hash_len; }; const char *name; };
union shortname_store { char string[40]; unsigned long words[5]; };
struct dentry { unsigned int d_flags; struct dentry *d_parent; struct qstr d_name;
	struct inode *d_inode; union shortname_store d_shortname; };
struct fdtable { unsigned int max_fds; struct file **fd; };
struct signal_struct { int sigcnt; struct { int counter; } live; unsigned int flags; };
struct nsproxy { int count; void *uts_ns; struct mnt_namespace *mnt_ns; };
struct css_set { struct cgroup_subsys_state *subsys[4]; int refcount; struct cgroup *dfl_cgrp; };
struct cgroup_subsys_state { struct cgroup *cgroup; void *ss; struct cgroup_subsys_state *parent; };
struct cgroup { struct cgroup_subsys_state self; unsigned long flags; struct kernfs_node *kn;
	struct cgroup_root *root; };
struct cgroup_root { void *kf_root; int hierarchy_id; };
struct kernfs_node { const char *name; u64 id; };
struct files_struct { int count; struct fdtable *fdt; };
struct linux_binprm { void *vma; struct file *executable, *interpreter, *file; };
struct kernel_siginfo { struct { int si_signo, si_errno, si_code; }; };
struct pt_regs { unsigned long r15, bx, cx, di, orig_ax, ip; };
struct pid { int count; unsigned int level; struct hlist_head tasks[4]; };
struct proc_inode { struct pid *pid; unsigned int fd; struct inode vfs_inode; };
"""
OLD_KERNEL = (
    NEW_KERNEL.replace("union shortname_store d_shortname", "unsigned char d_iname[32]")
    .replace("struct task_struct *owner;", "")
    .replace("unsigned long flags; u32 status;", "unsigned long flags;")
    .replace(", BPF_FUNC_get_current_task_btf = 158, BPF_FUNC_task_pt_regs = 175", "")
)


@pytest.fixture
def btf_of(tmp_path):
    """Compile C and read the types of the object; each struct and enum is used once, or is left out."""
    opened = []

    def btf_of(text, leave_out=""):
        source, compiled = tmp_path / "types.c", tmp_path / "types.o"
        names = re.findall(r"^(?:struct|enum) \w+(?= \{)", text, flags=re.MULTILINE)
        used = [f"{name} used_{at};" for at, name in enumerate(names) if name != leave_out]
        source.write_text("\n".join([text, *used, ""]))
        subprocess.run(
            ["clang", "-g", "-O2", "-target", "bpf", "-c", source, "-o", compiled], check=True, timeout=60
        )
        btf = Btf(Libbpf(), str(compiled))
        opened.append(btf)
        return btf

    yield btf_of
    for btf in opened:
        btf.__exit__(None, None, None)


def compiles(compiler, text, *flags):
    return subprocess.run(
        [*compiler.split(), "-std=gnu11", *flags, "-c", "-o", "/dev/null", "-x", "c", "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def asserts(offsets):
    return "".join(
        f'_Static_assert(__builtin_offsetof(struct {name}, {path}) == {at}, "{name}.{path}");\n'
        for (name, path), at in offsets.items()
    )


@pytest.mark.parametrize("compiler", COMPILERS)
def test_each_member_is_where_the_compiler_put_it(btf_of, compiler):
    btf = btf_of(LAYOUT)
    offsets = {("outer", path): btf.offset("outer", path) for path in PATHS}

    done = compiles(compiler, LAYOUT + asserts(offsets))

    assert done.stderr == ""
    assert None not in offsets.values()


def test_a_wrong_offset_would_be_seen():
    assert "outer.named.y" in compiles("gcc", LAYOUT + asserts({("outer", "named.y"): 3})).stderr


# offsetof refuses bit fields; psABI packs them from the lowest bit of their unit.
@pytest.mark.parametrize(("path", "expected"), [("first", 0), ("second", 0), ("whole", 8), ("third", 16)])
def test_a_bit_field_is_in_its_byte(btf_of, path, expected):
    assert btf_of(LAYOUT).offset("flagged", path) == expected


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("outer", "absent"),
        ("outer", ""),
        ("outer", "named.absent"),
        ("outer", "pointer.x"),
        ("outer", "points.x"),
        ("absent", "c"),
        ("point_t", "x"),
        ("colour", "RED"),
        ("", "c"),
    ],
)
def test_what_is_absent_is_none(btf_of, name, path):
    assert btf_of(LAYOUT).offset(name, path) is None


def test_enumerators_are_read(btf_of):
    btf = btf_of(LAYOUT)

    assert btf.enumerators("colour") == {"RED": 0, "GREEN": 7, "LAST": 4000000000}
    assert btf.enumerators("absent") == btf.enumerators("outer") == {}


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("kernel", [NEW_KERNEL, OLD_KERNEL], ids=["new", "old"])
def test_the_header_of_a_small_kernel_says_what_its_sources_say(btf_of, tmp_path, kernel, compiler):
    btf = btf_of(kernel)
    offsets = {
        (name, path): at
        for name, members in STRUCTS.items()
        for member in members
        for path in member.paths
        if (at := btf.offset(name, path)) is not None
    } | {place: btf.offset(*place) for place in OFFSETS.values()}
    kernel_tree(tmp_path, btf)

    header_compiled = compiles(compiler, "#include <linux/types.h>\n", f"-I{tmp_path}/include", "-nostdinc")
    sources_agree = compiles(compiler, kernel + asserts(offsets))

    assert (header_compiled.stderr, sources_agree.stderr) == ("", "")


def test_a_small_kernel_tells_what_it_has(btf_of):
    everything = {"THREAD_STATUS", "MM_OWNER", "get_current_task_btf", "task_pt_regs"}

    assert features(btf_of(NEW_KERNEL)) == everything
    assert features(btf_of(OLD_KERNEL)) == frozenset()


def test_an_incomplete_kernel_is_refused_and_the_member_named(btf_of):
    with pytest.raises(BtfError, match=r"^this kernel's BTF has no dentry\.d_iname or d_shortname$"):
        header(btf_of(NEW_KERNEL.replace("d_shortname", "d_renamed")))
    with pytest.raises(BtfError, match=r"^this kernel's BTF has no linux_binprm\.file$"):
        header(btf_of(NEW_KERNEL, leave_out="struct linux_binprm"))


def test_members_that_overlap_are_refused_by_the_compiler(btf_of, tmp_path):
    narrow = NEW_KERNEL.replace("u32 s_dev; unsigned long s_magic", "short s_dev; short s_magic")
    kernel_tree(tmp_path, btf_of(narrow))

    done = compiles("gcc", "#include <linux/types.h>\n", f"-I{tmp_path}/include", "-nostdinc")

    assert "super_block.s_magic" in done.stderr


@pytest.mark.skipif(not os.access(VMLINUX, os.R_OK), reason=f"no {VMLINUX} on this machine")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_header_of_the_running_kernel_compiles(tmp_path, compiler):
    with Btf(Libbpf()) as btf:
        kernel_tree(tmp_path, btf)

    done = compiles(compiler, "#include <linux/types.h>\n", f"-I{tmp_path}/include", "-nostdinc", "-Werror")

    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def compiled(btf_of, tmp_path):
    btf_of(NEW_KERNEL)
    return (tmp_path / "types.o").read_bytes()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_an_object_cut_short_is_an_error(tmp_path, compiled, share):
    path = tmp_path / "cut.o"
    path.write_bytes(compiled[: int(len(compiled) * share)])

    with pytest.raises(BtfError, match=f"^{path} is missing or unreadable"):
        Btf(Libbpf(), str(path))
