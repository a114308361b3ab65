"""Names of cgroups as kubelet and the runtimes make them, and others that only look alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.places import Place, place

UID = "6f1b2c3d-0a1b-4c5d-8e9f-001122334455"
SLICE_UID = UID.replace("-", "_")
OTHER = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
STATIC = "0123456789abcdef0123456789abcdef"
ID = "0a1b2c3d" * 8
ID_2 = "9f8e7d6c" * 8

POD = Place(pod_uid=UID, container_id=None)
CONTAINER = Place(pod_uid=UID, container_id=ID)
STATIC_CONTAINER = Place(pod_uid=STATIC, container_id=ID)

BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE_UID}.slice"
BESTEFFORT = f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE_UID}.slice"
GUARANTEED = f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice"
STATIC_SLICE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice"
KIND = "/kubelet.slice/kubelet-kubepods.slice"
KIND_BURSTABLE = f"{KIND}/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SLICE_UID}.slice"
CONTAINERD = "/system.slice/containerd.service"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # kubelet with cgroupfs
        (f"/kubepods/burstable/pod{UID}", POD),
        (f"/kubepods/burstable/pod{UID}/{ID}", CONTAINER),
        (f"/kubepods/besteffort/pod{UID}/{ID}", CONTAINER),
        (f"/kubepods/pod{UID}/{ID}", CONTAINER),
        (f"/kubepods/burstable/pod{STATIC}/{ID}", STATIC_CONTAINER),
        (f"/kubepods/burstable/pod{UID}/crio-{ID}", CONTAINER),
        (f"/kubepods/pod{UID}/{ID}/init.scope", CONTAINER),
        # kubelet with systemd
        (BURSTABLE, POD),
        (f"{BURSTABLE}/cri-containerd-{ID}.scope", CONTAINER),
        (f"{BESTEFFORT}/cri-containerd-{ID}.scope", CONTAINER),
        (f"{GUARANTEED}/cri-containerd-{ID}.scope", CONTAINER),
        (f"{BURSTABLE}/crio-{ID}.scope", CONTAINER),
        (f"{BURSTABLE}/crio-{ID}.scope/container", CONTAINER),
        (f"{GUARANTEED}/docker-{ID}.scope", CONTAINER),
        (f"{GUARANTEED}/docker-{ID}.scope/system.slice/cron.service", CONTAINER),
        (f"{STATIC_SLICE}/cri-containerd-{ID}.scope", STATIC_CONTAINER),
        (f"{BURSTABLE}/{ID}", CONTAINER),
        # kubelet with systemd, the runtime without
        (f"{CONTAINERD}/kubepods-burstable-pod{SLICE_UID}.slice:cri-containerd:{ID}", CONTAINER),
        (f"{CONTAINERD}/kubepods-pod{SLICE_UID}.slice:cri-containerd:{ID}/below", CONTAINER),
        (f"{CONTAINERD}/kubepods-besteffort-pod{STATIC}.slice:cri-containerd:{ID}", STATIC_CONTAINER),
        (f"/kubepods-burstable-pod{SLICE_UID}.slice:cri-containerd:{ID}", CONTAINER),
        (f"/system.slice/crio.service/kubepods-pod{SLICE_UID}.slice:crio:{ID}", CONTAINER),
        (f"{CONTAINERD}/kubelet-kubepods-pod{SLICE_UID}.slice:cri-containerd:{ID}", CONTAINER),
        # below a cgroup of kubelet's own, --cgroup-root
        (f"/kubelet/kubepods/burstable/pod{UID}/{ID}", CONTAINER),
        (f"/a/b/c/kubepods/pod{UID}/{ID}", CONTAINER),
        (f"/docker/{ID_2}/kubelet/kubepods/besteffort/pod{UID}/{ID}", CONTAINER),
        (f"{KIND_BURSTABLE}", POD),
        (f"{KIND_BURSTABLE}/cri-containerd-{ID}.scope", CONTAINER),
        (f"{KIND}/kubelet-kubepods-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope", CONTAINER),
        (f"/a.slice/a-b.slice/a-b-kubepods.slice/a-b-kubepods-pod{SLICE_UID}.slice/{ID}", CONTAINER),
        (f"/docker/{ID_2}{GUARANTEED}/{ID}", CONTAINER),
        # in a cgroup namespace: from what the path and ours have in common
        (f"/../../../..{BURSTABLE}/cri-containerd-{ID}.scope", CONTAINER),
        (f"/../../../kubepods-burstable.slice/kubepods-burstable-pod{SLICE_UID}.slice/{ID}", CONTAINER),
        (f"/../../kubepods-burstable-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope", CONTAINER),
        (f"/../../kubelet-kubepods-pod{SLICE_UID}.slice", POD),
        (f"/../../../burstable/pod{UID}/{ID}", CONTAINER),
        (f"/../../pod{UID}/{ID}", CONTAINER),
        # in the pod's, and no container's
        (f"{BURSTABLE}/crio-conmon-{ID}.scope", POD),
        (f"/kubepods/pod{UID}/crio-conmon-{ID}", POD),
        (f"/kubepods/pod{UID}/{ID[:-1]}", POD),
        (f"/kubepods/pod{UID}/{ID}0", POD),
        (f"/kubepods/pod{UID}/{ID.upper()}", POD),
        (f"/kubepods/pod{UID}/cri-containerd-{ID}", POD),
        (f"/kubepods/pod{UID}/evil-{ID}.scope", POD),
        (f"/kubepods/pod{UID}/cri-containerd-{ID}.scope\n", POD),
        (f"/kubepods/pod{UID}/x/{ID}", POD),
        # whatever a container calls what it makes inside its own, it is there
        (f"/kubepods/pod{UID}/{ID}/kubepods/pod{OTHER}/{ID_2}", CONTAINER),
        (f"/kubepods/pod{UID}/{ID}{BURSTABLE.replace(SLICE_UID, STATIC)}/{ID_2}", CONTAINER),
        (
            f"{BURSTABLE}/cri-containerd-{ID}.scope/kubepods-pod{STATIC}.slice:cri-containerd:{ID_2}",
            CONTAINER,
        ),
    ],
)
def test_a_cgroup_of_a_pod_is_told_by_its_path(path, expected):
    assert place(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "/..",
        "/../..",
        "kubepods",
        "/init.scope",
        "/system.slice/kubelet.service",
        "/user.slice/user-1000.slice/session-3.scope",
        # where pods are, and no pod
        "/kubepods",
        "/kubepods/burstable",
        "/kubepods.slice/kubepods-burstable.slice",
        f"/kubepods/{ID}",
        # uids that are none
        f"/kubepods/{UID}/{ID}",
        f"/kubepods/pod/{ID}",
        f"/kubepods/pod{UID[:-1]}/{ID}",
        f"/kubepods/pod{UID}0/{ID}",
        f"/kubepods/pod{UID.upper()}/{ID}",
        f"/kubepods/pod{SLICE_UID}/{ID}",
        f"/kubepods/pod{UID.replace('-', '')}0/{ID}",
        f"/kubepods/pod{UID}.slice/{ID}",
        f"/kubepods/xpod{UID}/{ID}",
        f"/kubepods/pod{UID}\n",
        f"/kubepods.slice/kubepods-pod{UID}.slice/{ID}",
        f"/kubepods.slice/kubepods-pod{SLICE_UID}/{ID}",
        f"/kubepods.slice/kubepods-pod{SLICE_UID}.scope/{ID}",
        # qualities of service that are none, or not the pod's
        f"/kubepods/guaranteed/pod{UID}/{ID}",
        f"/kubepods/burstable/besteffort/pod{UID}/{ID}",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-besteffort-pod{SLICE_UID}.slice/{ID}",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-pod{SLICE_UID}.slice/{ID}",
        f"/kubepods.slice/kubepods-burstable-pod{SLICE_UID}.slice/{ID}",
        # one driver's name in the other's folder
        f"/kubepods/kubepods-pod{SLICE_UID}.slice/{ID}",
        f"/kubepods.slice/pod{UID}/{ID}",
        # kubepods that are not kubelet's
        f"/xkubepods/pod{UID}/{ID}",
        f"/kubepods.scope/pod{UID}/{ID}",
        f"/pod{UID}/{ID}",
        f"/burstable/pod{UID}/{ID}",
        f"/kubepods-pod{SLICE_UID}.slice/{ID}",
        f"/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICE_UID}.slice/{ID}",
        f"/other.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICE_UID}.slice/{ID}",
        f"/kubelet.slice/kubelet-kubepods.slice/kubepods-pod{SLICE_UID}.slice/{ID}",
        f"/kubelet.slice{GUARANTEED}/{ID}",
        f"/a/b/c/d/kubepods/pod{UID}/{ID}",
        f"/kubepods/a/kubepods/pod{UID}/{ID}",
        f"/kubepods.slice/kubepods/pod{UID}/{ID}",
        f"/kubelet.slice/kubelet-kubepods.slice/kubepods/pod{UID}/{ID}",
        # in what systemd delegates, to users and to other containers
        f"/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{ID}",
        f"/user@1000.service/kubepods/pod{UID}/{ID}",
        f"/machine.slice/libpod-{ID_2}.scope/kubepods/pod{UID}/{ID}",
        f"/system.slice/docker-{ID_2}.scope{GUARANTEED}/{ID}",
        f"/system.slice/containerd.service/kubepods/pod{UID}/{ID}",
        # beside its pod, in a service that runs no containers or under a name that is not whole
        f"/system.slice/evil.service/kubepods-pod{SLICE_UID}.slice:cri-containerd:{ID}",
        f"/x{CONTAINERD}/kubepods-pod{SLICE_UID}.slice:cri-containerd:{ID}",
        f"{CONTAINERD}/x/kubepods-pod{SLICE_UID}.slice:cri-containerd:{ID}",
        f"{CONTAINERD}/kubepods-pod{SLICE_UID}.slice:evil:{ID}",
        f"{CONTAINERD}/kubepods-pod{SLICE_UID}.slice:cri-containerd:{ID[:-1]}",
        f"{CONTAINERD}/kubepods-pod{SLICE_UID}.slice:cri-containerd",
        f"{CONTAINERD}/kubepods-pod{UID}.slice:cri-containerd:{ID}",
        f"{CONTAINERD}/x:kubepods-pod{SLICE_UID}.slice:cri-containerd:{ID}",
        # in a cgroup namespace, where our own pod is not named
        f"/../{ID}",
        f"/../../system.slice/pod{UID}/{ID}",
        f"/../../evil/burstable/pod{UID}/{ID}",
        # no paths
        f"kubepods/pod{UID}/{ID}",
        f"/kubepods//pod{UID}/{ID}",
        f"/kubepods/pod{UID}/{ID}/",
        f"/kubepods/./pod{UID}/{ID}",
        f"/kubepods/x/../pod{UID}/{ID}",
        f"/kubepods/pod{UID}/../pod{OTHER}",
        f"/x/kubepods/pod{UID}/{ID}/..",
        f"..{GUARANTEED}/{ID}",
    ],
)
def test_what_only_looks_like_a_pods_is_none(path):
    assert place(path) is None


NAMES = st.sampled_from(
    ["kubepods", "burstable", f"pod{UID}", f"pod{OTHER}", ID, "..", ".", "x", "", *BURSTABLE.split("/")[1:]]
) | st.text(max_size=8)


@given(names=st.lists(NAMES, max_size=8))
def test_nothing_below_a_container_changes_whose_it_is(names):
    below = "/".join(["", *names])

    assert place(f"{BURSTABLE}/cri-containerd-{ID}.scope{below}") in {CONTAINER, None}
    assert place(f"/user.slice/user-1000.slice/user@1000.service{below}") is None


@given(names=st.lists(NAMES, max_size=8))
def test_a_path_is_a_pods_or_not_whatever_it_is(names):
    assert place("/".join(names)) in {
        None,
        *(Place(pod_uid=uid, container_id=id_) for uid in (UID, OTHER) for id_ in (ID, None)),
    }
