"""Whose a process is: in a hierarchy that is a folder, with a /proc that is another."""

import os
from pathlib import Path

import pytest

from agent.attribution import NODE, UNKNOWN, Attribution, Where, Workload
from agent.cgroups import Cgroups
from agent.hierarchy import Hierarchy
from agent.pods import Container, ContainerKind, Inject, Pod

UID = "6f1b2c3d-0a1b-4c5d-8e9f-001122334455"
STATIC = "0123456789abcdef0123456789abcdef"
ID = "0a1b2c3d" * 8
ID_2 = "9f8e7d6c" * 8
PID = 4711


class Node:
    """A hierarchy and a /proc in folders. `by_id`: whether the kernel opens a cgroup by its id."""

    def __init__(self, folder):
        self.mount, self.proc = folder / "cgroup", folder / "proc"
        self.mount.mkdir()
        self.proc.mkdir()
        self.by_id = True
        self.attribution = self.attribute()

    def attribute(self, **most):
        found = Hierarchy(mount=self.mount, controller=None, number=0)
        return Attribution(Cgroups(found, self.proc, open_by_id=self._open), **most)

    def make(self, path):
        directory = Path(f"{self.mount}{path}")
        directory.mkdir(parents=True, exist_ok=True)
        return directory.stat().st_ino

    def remove(self, path):
        Path(f"{self.mount}{path}").rmdir()

    def run(self, path, pid=PID):
        (self.proc / str(pid)).mkdir(exist_ok=True)
        (self.proc / str(pid) / "cgroup").write_text(f"0::{path}\n")

    def _open(self, mount, cgroup_id):
        for directory in [mount, *mount.rglob("*")]:
            if self.by_id and directory.stat().st_ino == cgroup_id:
                return os.open(directory, os.O_PATH | os.O_CLOEXEC)
        raise OSError


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def pod(name="shop", *, uid=UID, api_uid=UID, containers=((ID, "app"),)):
    return Pod(
        uid=uid,
        api_uid=api_uid,
        namespace="prod",
        name=name,
        inject=Inject.YES,
        mode=None,
        actions=(),
        shared_pids=False,
        containers=tuple(Container(id=id_, name=of, kind=ContainerKind.REGULAR) for id_, of in containers),
        mistakes=(),
    )


IN_APP = Workload(
    where=Where.POD, container="app", container_id=ID, pod="shop", pod_uid=UID, namespace="prod"
)
CONTAINER = f"/kubepods/burstable/pod{UID}/{ID}"


def test_what_was_learned_is_found_with_no_process_and_no_cgroup(node):
    node.attribution.learn_container(77, UID, ID)
    node.attribution.learn_pod(pod())

    assert node.attribution.find(77, PID) == IN_APP
    assert node.attribution.unknown == 0


def test_a_container_of_a_pod_that_is_not_known_yet_has_its_ids(node):
    node.attribution.learn_container(77, UID, ID)

    assert node.attribution.find(77, PID) == Workload(where=Where.POD, container_id=ID, pod_uid=UID)

    node.attribution.learn_pod(pod())
    assert node.attribution.find(77, PID) == IN_APP


def test_a_container_that_the_pods_status_does_not_tell_yet_has_its_id_and_its_pod(node):
    node.attribution.learn_container(77, UID, ID_2)
    node.attribution.learn_pod(pod())

    assert node.attribution.find(77, PID) == Workload(
        where=Where.POD, container_id=ID_2, pod="shop", pod_uid=UID, namespace="prod"
    )


def test_a_container_keeps_its_name_when_it_starts_again_as_another(node):
    node.attribution.learn_container(77, UID, ID)
    node.attribution.learn_container(78, UID, ID_2)
    node.attribution.learn_pod(pod())
    node.attribution.learn_pod(pod(containers=((ID_2, "app"),)))

    found = [node.attribution.find(cgroup_id, PID) for cgroup_id in (77, 78)]

    assert [(each.container, each.container_id) for each in found] == [("app", ID), ("app", ID_2)]


def test_a_container_is_named_by_its_own_pod_alone(node):
    node.attribution.learn_container(77, UID, ID)
    node.attribution.learn_pod(pod(containers=()))
    node.attribution.learn_pod(pod("evil", uid=STATIC, api_uid="other", containers=((ID, "mine"),)))

    assert node.attribution.find(77, PID).container is None


def test_a_static_pod_is_found_by_its_hash_and_told_by_the_apis_uid(node):
    cgroup_id = node.make(f"/kubepods/pod{STATIC}/{ID}")
    node.attribution.learn_pod(pod("etcd", uid=STATIC, api_uid=UID))

    found = node.attribution.find(cgroup_id, PID)

    assert (found.pod, found.pod_uid, found.container) == ("etcd", UID, "app")


@pytest.mark.parametrize("by_id", [True, False])
def test_what_was_not_learned_is_found_by_its_cgroup_or_by_its_process(node, by_id):
    node.by_id = by_id
    cgroup_id = node.make(f"{CONTAINER}/below")
    node.run(f"{CONTAINER}/below")
    node.attribution.learn_pod(pod())

    assert node.attribution.find(cgroup_id, PID) == IN_APP


def test_a_cgroup_outlives_its_process(node):
    cgroup_id = node.make(CONTAINER)
    node.attribution.learn_pod(pod())

    assert node.attribution.find(cgroup_id, PID) == IN_APP


def test_what_is_only_in_the_pods_cgroup_is_in_no_container(node):
    cgroup_id = node.make(f"/kubepods/burstable/pod{UID}/crio-conmon-{ID}")
    node.attribution.learn_pod(pod())

    assert node.attribution.find(cgroup_id, PID) == Workload(
        where=Where.POD, pod="shop", pod_uid=UID, namespace="prod"
    )


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("path", ["/", "/user.slice/user-1000.slice/session-3.scope", "/kubepods"])
def test_what_is_in_no_pod_is_on_the_node(node, path, by_id):
    node.by_id = by_id
    cgroup_id = node.make(path)
    node.run(path)

    assert node.attribution.find(cgroup_id, PID) == NODE
    assert node.attribution.unknown == 0


@pytest.mark.parametrize(
    ("path", "where"), [(CONTAINER, Where.POD), ("/system.slice/cron.service", Where.NODE)]
)
def test_what_was_found_once_is_found_when_all_has_gone(node, path, where):
    cgroup_id = node.make(path)
    assert node.attribution.find(cgroup_id, PID).where is where

    node.remove(path)

    assert node.attribution.find(cgroup_id, PID).where is where


def test_what_left_nothing_is_unknown_and_counted(node):
    cgroup_id = node.make(CONTAINER)
    node.remove(CONTAINER)

    assert [node.attribution.find(cgroup_id, PID) for _ in range(7)] == [UNKNOWN] * 7
    assert node.attribution.unknown == 7


def test_who_only_looks_is_not_counted(node):
    assert node.attribution.find(17, PID, count=False) == UNKNOWN
    assert node.attribution.unknown == 0


def test_a_pid_that_came_back_in_another_cgroup_is_not_believed(node):
    gone = node.make(CONTAINER)
    node.make(f"/kubepods/pod{STATIC}/{ID_2}")
    node.remove(CONTAINER)
    node.run(f"/kubepods/pod{STATIC}/{ID_2}")

    assert node.attribution.find(gone, PID) == UNKNOWN


def test_a_cgroup_that_was_made_again_under_its_old_name_is_another(node):
    gone = node.make(CONTAINER)
    Path(f"{node.mount}{CONTAINER}").rename(node.mount / "aside")  # so that the number stays taken
    node.by_id = False
    node.make(CONTAINER)
    node.run(CONTAINER)

    assert node.attribution.find(gone, PID) == UNKNOWN


def test_without_an_id_the_process_is_believed(node):
    node.run(CONTAINER)
    node.attribution.learn_pod(pod())

    assert node.attribution.find(0, PID) == IN_APP

    node.run("/init.scope")
    assert node.attribution.find(0, PID) == NODE
    assert node.attribution.find(0, PID + 1) == UNKNOWN


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/../../pod{UID}/{ID}", IN_APP),
        (f"/../{ID}", UNKNOWN),
        ("/../../../system.slice", UNKNOWN),
    ],
)
def test_what_a_cgroup_namespace_hides_is_unknown(node, path, expected):
    node.run(path)
    node.attribution.learn_pod(pod())

    assert node.attribution.find(0, PID) == expected
    assert node.attribution.find(77, PID) == UNKNOWN


def test_the_container_that_was_not_used_for_longest_is_forgotten_first(node):
    attribution = node.attribute(most_containers=2)
    attribution.learn_container(71, UID, ID)
    attribution.learn_container(72, UID, ID)
    attribution.find(71, PID)
    attribution.learn_container(73, UID, ID)

    found = {cgroup_id: attribution.find(cgroup_id, PID).where for cgroup_id in (71, 72, 73)}

    assert found == {71: Where.POD, 72: Where.UNKNOWN, 73: Where.POD}


def test_what_is_learned_twice_takes_the_room_of_one(node):
    attribution = node.attribute(most_containers=2)
    for cgroup_id in (71, 72, 71, 73):
        attribution.learn_container(cgroup_id, UID, ID)

    assert attribution.find(71, PID).where is Where.POD
    assert attribution.find(72, PID).where is Where.UNKNOWN


def test_who_makes_cgroups_without_end_does_not_make_it_forget(node):
    attribution = node.attribute(most_containers=3)
    attribution.learn_container(1 << 50, UID, ID)
    made = [node.make(f"/kubepods/pod{STATIC}/{ID_2}/{number}") for number in range(7)]
    for cgroup_id in made:
        attribution.find(cgroup_id, PID)

    assert attribution.find(1 << 50, PID).container_id == ID
    assert len(attribution._found) == 3


def test_a_pod_that_went_is_forgotten_when_there_is_no_room(node):
    attribution = node.attribute(most_pods=2)
    attribution.learn_container(77, UID, ID)
    attribution.learn_pod(pod())
    attribution.learn_pod(pod("second", uid=STATIC))
    assert attribution.find(77, PID).pod == "shop"
    attribution.learn_pod(pod("third", uid=STATIC[::-1]))
    assert attribution.find(77, PID).pod == "shop"
    for number in range(2):
        attribution.learn_pod(pod(f"more-{number}", uid=f"{number:032}"))

    assert attribution.find(77, PID).pod is None
    assert len(attribution._pods) == 2
