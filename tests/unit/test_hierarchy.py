"""Which of the hierarchies that a node mounts tells its pods apart."""

import pytest

from agent.hierarchy import Hierarchy, hierarchy

UID = "6f1b2c3d-0a1b-4c5d-8e9f-001122334455"
ID = "0a1b2c3d" * 8
BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice"

V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
23 28 0:22 / /proc rw,relatime shared:14 - proc proc rw
31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/systemd rw,relatime shared:10 - cgroup cgroup rw,xattr,name=systemd
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:11 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/memory rw,relatime shared:12 - cgroup cgroup rw,memory
35 31 0:32 / /sys/fs/cgroup/pids rw,relatime shared:13 - cgroup cgroup rw,pids
"""
HYBRID = f"{V1}41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
NUMBERS = """\
#subsys_name	hierarchy	num_cgroups	enabled
cpuset	3	6	1
cpu	2	6	1
cpuacct	2	6	1
memory	4	18	1
pids	8	6	1
"""
NO_NUMBERS = "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t80\t1\npids\t0\t80\t1\n"


def without(text, *words):
    return "".join(line for line in text.splitlines(keepends=True) if not any(word in line for word in words))


MISLEADING = V1.replace("name=systemd", "name=memory").replace("rw,memory", "rw")


@pytest.fixture
def node(tmp_path):
    def node(mountinfo, numbers=NUMBERS):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/mountinfo").write_text(mountinfo)
        if numbers is not None:
            (tmp_path / "proc/cgroups").write_text(numbers)
        return tmp_path

    return node


@pytest.mark.parametrize(
    ("mountinfo", "numbers", "expected"),
    [
        (V2, NO_NUMBERS, ("sys/fs/cgroup", None, 0)),
        (V2, None, ("sys/fs/cgroup", None, 0)),
        (V1, NUMBERS, ("sys/fs/cgroup/memory", "memory", 4)),
        (HYBRID, NUMBERS, ("sys/fs/cgroup/memory", "memory", 4)),
        (without(V1, "/memory"), NUMBERS, ("sys/fs/cgroup/pids", "pids", 8)),
        (without(HYBRID, "/memory", "/pids"), NUMBERS, ("sys/fs/cgroup/cpu,cpuacct", "cpu", 2)),
        (without(HYBRID, "/memory", "/pids", "/cpu"), NUMBERS, ("sys/fs/cgroup/unified", None, 0)),
        (HYBRID, NO_NUMBERS, ("sys/fs/cgroup/unified", None, 0)),
        (MISLEADING, NUMBERS, ("sys/fs/cgroup/pids", "pids", 8)),
        (V2 + V1.replace("/sys/fs/cgroup", "/mnt/old"), NUMBERS, ("sys/fs/cgroup", None, 0)),
        (V2.replace("/sys/fs/cgroup", r"/mnt/a\040b\134c"), None, (r"mnt/a b\c", None, 0)),
        (V2.replace("shared:4 ", ""), None, ("sys/fs/cgroup", None, 0)),
    ],
    ids=[
        "v2",
        "v2 of a kernel without v1",
        "v1",
        "hybrid",
        "v1 without memory",
        "hybrid with cpu",
        "hybrid without any that serves",
        "hybrid with all controllers in v2",
        "v1 with a name that misleads",
        "v2 with controllers of v1 elsewhere",
        "v2 at a point that is escaped",
        "v2 without optional fields",
    ],
)
def test_the_hierarchy_is_the_one_that_kubelet_uses(node, mountinfo, numbers, expected):
    root = node(mountinfo, numbers)

    found = hierarchy(root)

    mount, controller, number = expected
    assert found == Hierarchy(mount=root / mount, controller=controller, number=number)


@pytest.mark.parametrize(
    "mountinfo",
    [
        "",
        without(V1, "/memory", "/pids", "/cpu"),
        V2.replace(" / /sys", f" {BURSTABLE}/cri-containerd-{ID}.scope /sys"),
        without(V1, "/pids", "/cpu").replace("0:31 / ", f"0:31 /kubepods/pod{UID}/{ID} "),
    ],
    ids=["nothing", "v1 without any that serves", "our own container's alone", "the same on v1"],
)
def test_a_node_whose_cgroups_cannot_be_seen_has_no_hierarchy(node, mountinfo):
    assert hierarchy(node(mountinfo)) is None


def mounted(*pairs):
    return "".join(V2.replace(" / /sys/fs/cgroup ", f" {root} {point} ") for root, point in pairs)


@pytest.mark.parametrize(
    ("mountinfo", "mount", "root"),
    [
        (mounted(("/", "/host"), ("/docker/x", "/sys/fs/cgroup")), "host", "/"),
        (mounted(("/docker/x", "/sys/fs/cgroup"), ("/", "/host")), "host", "/"),
        (mounted(("/", "/sys/fs/cgroup"), ("/../../..", "/host")), "host", "/../../.."),
        (mounted(("/../../..", "/host"), ("/..", "/sys/fs/cgroup")), "host", "/../../.."),
        (mounted(("/docker/x", "/sys/fs/cgroup")), "sys/fs/cgroup", "/docker/x"),
        (mounted(("/", "/first"), ("/", "/second")), "second", "/"),
    ],
)
def test_of_several_mounts_the_one_that_shows_most_serves(node, mountinfo, mount, root):
    at = node(mountinfo)

    assert hierarchy(at) == Hierarchy(mount=at / mount, controller=None, number=0, root=root)
