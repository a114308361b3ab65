"""Pods, containers and processes found in trees of cgroups."""

import os
from pathlib import Path

import pytest

from agent import cgroups
from agent.cgroups import CgroupDir, Cgroups, open_by_id
from agent.hierarchy import Hierarchy, hierarchy

UID = "6f1b2c3d-0a1b-4c5d-8e9f-001122334455"
SLICE_UID = UID.replace("-", "_")
OTHER = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
STATIC = "0123456789abcdef0123456789abcdef"
ID = "0a1b2c3d" * 8
ID_2 = "9f8e7d6c" * 8

TOP = "/kubepods.slice"
BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE_UID}.slice"
BESTEFFORT = f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE_UID}.slice"
GUARANTEED = f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice"
KIND = "/kubelet.slice/kubelet-kubepods.slice"
KIND_BURSTABLE = f"{KIND}/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SLICE_UID}.slice"
CONTAINERD = "/system.slice/containerd.service"


class Tree:
    """A hierarchy in a folder, and a /proc."""

    def __init__(self, folder):
        self.mount, self.proc = folder / "cgroup", folder / "proc"
        self.mount.mkdir()
        self.proc.mkdir()

    def make(self, path, *pids):
        directory = Path(f"{self.mount}{path}")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        return directory

    def process(self, pid, *, in_namespaces=(1,), started=100, state="S", flags=0, cgroup=None):
        files = self.proc / str(pid)
        files.mkdir(exist_ok=True)
        fields = [state, *["0"] * 5, str(flags), *["0"] * 12, str(started), "0"]
        (files / "stat").write_text(f"{pid} (a) b) {' '.join(fields)}\n")
        numbers = "\t".join(str(number) for number in (pid, *in_namespaces))
        (files / "status").write_text(f"Name:\tNSpid:\nTgid:\t{pid}\nNStgid:\t{numbers}\nNSpid:\t{numbers}\n")
        if cgroup is not None:
            (files / "cgroup").write_bytes(os.fsencode(cgroup))

    def cgroups(self, **hierarchy):
        settings = {"controller": None, "number": 0} | hierarchy
        return Cgroups(Hierarchy(mount=self.mount, **settings), self.proc)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def relative(tree, directories):
    return [f"/{each.path.relative_to(tree.mount)}" for each in directories]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ((), ()),
        (("/kubepods",), ("/kubepods",)),
        (
            ("/kubepods/burstable", "/kubepods/besteffort", "/kubepods/other", f"/kubepods/pod{UID}"),
            ("/kubepods", "/kubepods/burstable", "/kubepods/besteffort"),
        ),
        (
            (BURSTABLE, BESTEFFORT, GUARANTEED),
            (TOP, f"{TOP}/kubepods-burstable.slice", f"{TOP}/kubepods-besteffort.slice"),
        ),
        ((KIND_BURSTABLE,), (KIND, f"{KIND}/kubelet-kubepods-burstable.slice")),
        (("/kubelet/kubepods/besteffort",), ("/kubelet/kubepods", "/kubelet/kubepods/besteffort")),
        (("/a/b/c/kubepods", "/a/b/c/d/kubepods"), ("/a/b/c/kubepods",)),
        (("/kubepods", "/kubelet/kubepods"), ("/kubepods", "/kubelet/kubepods")),
        (("/kubepods/x/kubepods", f"/kubepods/pod{UID}/kubepods"), ("/kubepods",)),
        (("/system.slice/evil.service/kubepods", "/machine.slice/evil.scope/kubepods.slice"), ()),
        (("/kubelet-kubepods.slice", "/x.slice/kubelet-kubepods.slice", "/x.slice/kubepods.slice"), ()),
    ],
)
def test_the_directories_of_pods_are_found(tree, made, expected):
    for path in made:
        tree.make(path)

    found = tree.cgroups().roots()

    assert sorted(relative(tree, found)) == sorted(expected)
    assert all(each.id == each.path.stat().st_ino for each in found)


def test_what_another_user_made_is_not_looked_into(tree, monkeypatch):
    tree.make("/mine/kubepods")
    theirs = {tree.make("/kubepods"), tree.make("/theirs/kubepods").parent}
    directories = cgroups._directories

    class Status:
        def __init__(self, path, status):
            self.st_ino, self.st_uid = status.st_ino, status.st_uid + (path in theirs)

    monkeypatch.setattr(
        cgroups,
        "_directories",
        lambda folder: [(path, Status(path, status)) for path, status in directories(folder)],
    )

    assert relative(tree, tree.cgroups().roots()) == ["/mine/kubepods"]


def test_a_hierarchy_that_is_not_there_is_empty(tree):
    tree.mount.rmdir()
    gone = tree.mount / "kubepods"

    assert tree.cgroups().roots() == []
    assert tree.cgroups().pods(gone) == []
    assert tree.cgroups().containers(gone) == []
    assert tree.cgroups().processes(gone) == []


def test_a_directory_that_goes_while_it_is_listed_is_left_out(tree, monkeypatch):
    tree.make("/kubepods")
    tree.make("/kubelet/kubepods")

    class Gone:
        path = str(tree.mount / "gone")

        def is_dir(self, *, follow_symlinks):
            return not follow_symlinks

        def stat(self, **_):
            raise FileNotFoundError(self.path)

    scandir = os.scandir

    class Listing:
        def __init__(self, folder):
            self.entries = [Gone(), *scandir(folder)]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Listing)

    assert sorted(relative(tree, tree.cgroups().roots())) == ["/kubelet/kubepods", "/kubepods"]


def test_links_are_not_followed(tree):
    tree.make("/elsewhere/burstable")
    (tree.mount / "kubepods").symlink_to(tree.mount / "elsewhere")

    assert tree.cgroups().roots() == []


def test_the_pods_directly_in_a_root_are_found(tree):
    other = f"kubepods-burstable-pod{OTHER.replace('-', '_')}.slice"
    made = {UID: tree.make(BURSTABLE), OTHER: tree.make(f"{Path(BURSTABLE).parent}/{other}")}
    static = tree.make(f"/kubepods.slice/kubepods-pod{STATIC}.slice")
    tree.make(f"{BURSTABLE}/{ID}")
    tree.make(f"{Path(BURSTABLE).parent}/kubepods-besteffort-pod{STATIC}.slice")
    seen = tree.cgroups()

    in_burstable = seen.pods(made[UID].parent)
    in_kubepods = seen.pods(static.parent)

    assert {pod.pod_uid: pod.path for pod in in_burstable} == made
    assert {pod.pod_uid: pod.path for pod in in_kubepods} == {STATIC: static}
    assert all(pod.id == pod.path.stat().st_ino for pod in in_burstable)


@pytest.mark.parametrize(
    ("pod", "names"),
    [
        (f"/kubepods/pod{UID}", (ID, ID_2)),
        (f"/kubepods/pod{UID}", (f"crio-{ID}", f"crio-{ID_2}")),
        (BURSTABLE, (f"cri-containerd-{ID}.scope", f"docker-{ID_2}.scope")),
        (KIND_BURSTABLE, (f"crio-{ID}.scope", f"crio-{ID_2}.scope")),
    ],
)
def test_the_containers_of_a_pod_are_found(tree, pod, names):
    for name in names:
        tree.make(f"{pod}/{name}/container")
    for name in (f"crio-conmon-{ID}.scope", f"crio-conmon-{ID}", "other"):
        tree.make(f"{pod}/{name}")

    found = tree.cgroups().containers(tree.make(pod))

    assert {each.container_id: each.path.name for each in found} == dict(zip((ID, ID_2), names, strict=True))
    assert all(each.id == each.path.stat().st_ino for each in found)


@pytest.mark.parametrize("runtime", ["", CONTAINERD])
def test_containers_beside_their_pod_are_found(tree, runtime):
    pod = tree.make(BURSTABLE)
    mine = tree.make(f"{runtime}/{pod.name}:cri-containerd:{ID}")
    tree.make(f"{runtime}/{pod.name}:evil:{ID_2}")
    tree.make(f"{runtime}/kubepods-burstable-pod{STATIC}.slice:cri-containerd:{ID_2}")

    assert [(each.container_id, each.path) for each in tree.cgroups().containers(pod)] == [(ID, mine)]


def test_the_processes_of_a_container_are_those_below_it_too(tree):
    container = tree.make(f"{GUARANTEED}/crio-{ID}.scope", 7, 0)
    tree.make(f"{GUARANTEED}/crio-{ID}.scope/container", 11, 5)
    tree.make(f"{GUARANTEED}/crio-{ID}.scope/container/deep", 13, 7)
    tree.make(f"{GUARANTEED}/crio-{ID_2}.scope", 17)

    assert tree.cgroups().processes(container) == [5, 7, 11, 13]


def test_a_cgroup_that_does_not_tell_its_processes_is_passed_over(tree):
    container = tree.make(f"/kubepods/pod{UID}/{ID}", 7)
    tree.make(f"/kubepods/pod{UID}/{ID}/threaded/below", 11)
    threaded = container / "threaded"
    (threaded / "cgroup.procs").mkdir()  # as unreadable as with EOPNOTSUPP

    assert tree.cgroups().processes(container) == [7, 11]


def test_a_container_that_makes_cgroups_without_end_is_looked_into_only_so_far(tree, monkeypatch):
    container = tree.make(f"/kubepods/pod{UID}/{ID}", 7)
    tree.make(f"/kubepods/pod{UID}/{ID}/container", 11)
    tree.make(f"/kubepods/pod{UID}/{ID}/container/too-deep", 13)
    monkeypatch.setattr("agent.cgroups._MOST_DIRECTORIES", 2)

    assert tree.cgroups().processes(container) == [7, 11]


##### Main processes


@pytest.fixture
def container(tree):
    return tree.make(f"/kubepods/pod{UID}/{ID}", 20, 30, 40, 50, 60)


def test_the_main_process_is_pid_1_of_the_containers_own_namespace(tree, container):
    tree.process(20, in_namespaces=(), started=1)  # entered from the node, such as by nsenter
    tree.process(30, in_namespaces=(7, 1), started=2)  # the first of a namespace of the container's own
    tree.process(40, in_namespaces=(1,), started=5)
    tree.process(50, in_namespaces=(11,), started=3)

    assert tree.cgroups().main_process(container, shared_pids=False) == 40


def test_a_process_of_the_node_is_no_main_process(tree, container):
    tree.make(f"/kubepods/pod{UID}/{ID}", 1)
    tree.process(1, in_namespaces=())

    assert tree.cgroups().main_process(container, shared_pids=False) is None


@pytest.mark.parametrize("shared_pids", [False, True])
def test_the_runtime_before_its_exec_is_no_main_process(tree, container, shared_pids):
    tree.process(20, started=8, flags=0x40)  # PF_FORKNOEXEC
    assert tree.cgroups().main_process(container, shared_pids) is None

    tree.process(30, started=9)
    assert tree.cgroups().main_process(container, shared_pids) == 30


def test_of_two_first_processes_the_older_is_the_main_one(tree, container):
    tree.process(20, in_namespaces=(1,), started=9)
    tree.process(30, in_namespaces=(1,), started=8)

    assert tree.cgroups().main_process(container, shared_pids=False) == 30


def test_in_a_shared_namespace_it_is_the_one_that_started_first(tree, container):
    tree.process(20, in_namespaces=(31,), started=90)
    tree.process(30, in_namespaces=(29,), started=88)
    tree.process(40, in_namespaces=(27,), started=88)
    tree.process(50, in_namespaces=(1,), started=1, state="Z")

    assert tree.cgroups().main_process(container, shared_pids=True) == 30


@pytest.mark.parametrize("shared_pids", [False, True])
def test_a_container_without_processes_has_no_main_process(tree, container, shared_pids):
    assert tree.cgroups().main_process(container, shared_pids=shared_pids) is None


def test_a_main_process_that_has_ended_is_none(tree, container):
    tree.process(20, in_namespaces=(1,), state="Z")

    assert tree.cgroups().main_process(container, shared_pids=False) is None


def test_a_kernel_that_does_not_tell_namespaces_has_no_main_processes(tree, container):
    tree.process(20)
    (tree.proc / "20/status").write_text("Name:\tx\nTgid:\t20\n")

    assert tree.cgroups().main_process(container, shared_pids=False) is None


def test_a_pid_that_is_a_strangers_by_now_is_not_the_main_process(tree, container, monkeypatch):
    tree.process(20)
    seen = tree.cgroups()
    looks = iter([[20], []])
    monkeypatch.setattr(seen, "processes", lambda _container: next(looks))

    assert seen.main_process(container, shared_pids=False) is None


##### Paths

V1_MEMORY = {"controller": "memory", "number": 4}


@pytest.mark.parametrize(
    ("text", "hierarchy", "expected"),
    [
        ("0::/kubepods/a\n", {}, "/kubepods/a"),
        ("4:memory:/m\n1:name=systemd:/s\n0::/u\n", {}, "/u"),
        ("4:memory:/m\n1:name=systemd:/s\n0::/u\n", V1_MEMORY, "/m"),
        ("4:cpu,memory:/m\n0::/u\n", V1_MEMORY, "/m"),
        ("4:name=memory:/m\n0::/u\n", V1_MEMORY, None),
        ("4:memory2:/m\n0::/u\n", V1_MEMORY, None),
        ("4:memory:/m\n", {}, None),
        ("", {}, None),
        ("0::/\n", {}, "/"),
        ("0::/a:b::c\n", {}, "/a:b::c"),
        ("0::/a (deleted)\n", {}, "/a"),
        ("4:memory:/a (deleted)\n", V1_MEMORY, "/a (deleted)"),
        # characters that other programs take for the end of a line, in a name that an attacker chose
        (f"4:cpu:/x\x0b\x0c\x1c\x85\u2028\r4:memory:/kubepods/pod{UID}\n", V1_MEMORY, None),
        ("0::/a\r0::/b\n", {}, "/a\r0::/b"),
        (b"0::/\xff\n", {}, "/\udcff"),
        # below the cgroup that is mounted
        ("0::/docker/x/kubepods/a\n", {"root": "/docker/x"}, "/kubepods/a"),
        ("0::/docker/x\n", {"root": "/docker/x"}, "/"),
        ("0::/docker/xy/kubepods/a\n", {"root": "/docker/x"}, None),
        ("0::/\n", {"root": "/docker/x"}, None),
        # in a cgroup namespace
        ("0::/../../../kubepods/a\n", {"root": "/../../.."}, "/kubepods/a"),
        ("0::/../../..\n", {"root": "/../../.."}, "/"),
        ("0::/../../a\n", {"root": "/../../.."}, "/../../a"),
        ("0::/../../a\n", {}, "/../../a"),
        ("0::/\n", {"root": "/../../.."}, None),
    ],
)
def test_the_path_of_a_process_is_the_hierarchys(tree, text, hierarchy, expected):
    tree.process(7, cgroup=text)

    assert tree.cgroups(**hierarchy).path_of(7) == expected


def test_a_process_that_has_gone_has_no_path(tree):
    assert tree.cgroups().path_of(7) is None


@pytest.mark.parametrize(
    ("hierarchy", "state", "expected"),
    [(V1_MEMORY, "Z", None), (V1_MEMORY, "S", "/"), ({}, "Z", "/")],
)
def test_on_v1_the_root_of_a_process_that_ends_is_no_answer(tree, hierarchy, state, expected):
    tree.process(7, state=state, cgroup="4:memory:/\n0::/\n")

    assert tree.cgroups(**hierarchy).path_of(7) == expected


def test_a_path_leads_to_its_cgroups_id(tree):
    made = tree.make("/kubepods/a")
    seen = tree.cgroups()

    assert seen.id_of("/kubepods/a") == made.stat().st_ino
    assert seen.id_of("/") == tree.mount.stat().st_ino
    assert seen.id_of("/kubepods/gone") is None
    assert seen.id_of("/kubepods/../kubepods/a") is None
    assert seen.id_of("/../cgroup/kubepods/a") is None


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


class TestById:
    """A cgroup is found by its id alone, by what the kernel opens for it."""

    @pytest.fixture
    def path_by_id(self, tree):
        def path_by_id(cgroup_id, leads_to):
            def opened(mount, asked):
                assert (mount, asked) == (tree.mount, cgroup_id)
                return os.open(leads_to, os.O_PATH | os.O_CLOEXEC)

            found = Hierarchy(mount=tree.mount, controller=None, number=0)
            return Cgroups(found, tree.proc, open_by_id=opened).path_by_id(cgroup_id)

        return path_by_id

    def test_a_cgroup_has_its_path(self, tree, path_by_id):
        made = tree.make("/kubepods/a")

        assert path_by_id(made.stat().st_ino, made) == "/kubepods/a"
        assert path_by_id(tree.mount.stat().st_ino, tree.mount) == "/"

    def test_a_cgroup_that_has_gone_has_none(self, tree, path_by_id):
        assert path_by_id(7, tree.mount / "gone") is None

    def test_a_cgroup_that_goes_meanwhile_has_none(self, tree, path_by_id):
        assert path_by_id(7, tree.make("/kubepods/another")) is None

    def test_what_the_mount_does_not_show_has_none(self, tree, path_by_id):
        beside = Path(f"{tree.mount}-beside")
        beside.mkdir()

        assert path_by_id(beside.stat().st_ino, beside) is None

    def test_no_descriptor_is_left(self, tree, path_by_id):
        made = tree.make("/kubepods/a")
        before = descriptors()
        for _ in range(7):
            path_by_id(made.stat().st_ino, made)

        assert descriptors() == before

    def test_the_kernel_is_asked(self, tree):
        before = descriptors()
        with pytest.raises(OSError, match=r"Stale file handle|not permitted|not supported|Invalid argument"):
            open_by_id(tree.mount, (1 << 40) + 7)

        assert tree.cgroups().path_by_id((1 << 40) + 7) is None
        assert descriptors() == before

    def test_the_kernel_answers(self):
        found = hierarchy()
        if found is None or os.geteuid() != 0:
            pytest.skip("opening a cgroup by its id takes root and a hierarchy")
        seen = Cgroups(found)
        root_id = found.mount.stat().st_ino
        try:
            os.close(open_by_id(found.mount, root_id))
        except OSError as error:
            pytest.skip(f"the kernel does not let us: {error}")

        assert seen.path_by_id(root_id) == "/"


def test_a_cgroup_is_its_id_and_its_path(tree):
    made = tree.make("/kubepods")

    assert tree.cgroups().roots() == [CgroupDir(id=made.stat().st_ino, path=made)]
