"""Whose a cgroup is, by its path: what kubelet and the container runtimes call the cgroups of pods.

Names decide where a cgroup belongs, and whoever may make cgroups may choose them. Only what kubelet and the
container runtimes make themselves is believed: the outermost match counts, so that what a container makes
inside its own cgroup stays that container's, and nothing counts below a service or a scope, which are what
systemd lets others make cgroups in.
"""

import re
from dataclasses import dataclass

QUALITIES = ("burstable", "besteffort")  # of service; guaranteed pods are directly in kubepods
LEVELS = 3  # above kubepods: what kubelet's --cgroup-root may name
# Where kubelet names slices and the runtime does not use systemd, containers are beside their pods: in the
# runtime's own cgroup, under the name that was meant for systemd.
RUNTIMES = ("", "/system.slice/containerd.service", "/system.slice/crio.service")

# A static pod's is the hash of its manifest.
_UID = r"(?P<uid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})"
_SLICE_UID = _UID.replace("-[0-9a-f]{", "_[0-9a-f]{")  # in a slice's name - means "below"
_QUALITY = "|".join(QUALITIES)

_ABOVE = rf"(?P<above>(?:/[^/]+){{0,{LEVELS}}}?)"
_BELOW = r"(?:/(?P<below>(?s:.+)))?"
_CGROUPFS_TOP = r"/kubepods"
_CGROUPFS_POD = rf"(?:/(?:{_QUALITY}))?/pod{_UID}{_BELOW}"
_SYSTEMD_TOP = r"/(?P<stem>(?:[^/]+-)?)kubepods\.slice"
_SYSTEMD_POD = (
    rf"(?:/(?P=stem)kubepods(?P<quality>-(?:{_QUALITY}))\.slice)?"
    rf"/(?P=stem)kubepods(?(quality)(?P=quality))-pod{_SLICE_UID}\.slice{_BELOW}"
)

_TOP = re.compile(rf"{_ABOVE}(?:{_CGROUPFS_TOP}|{_SYSTEMD_TOP})")
_POD = tuple(
    re.compile(_ABOVE + top + pod)
    for top, pod in ((_CGROUPFS_TOP, _CGROUPFS_POD), (_SYSTEMD_TOP, _SYSTEMD_POD))
)
# What a cgroup namespace leaves of the path of a pod next to ours.
_POD_NEXT_TO_OURS = (
    re.compile(_CGROUPFS_POD),
    re.compile(
        rf"(?:/(?:[^/]+-)?kubepods-(?:{_QUALITY})\.slice)?"
        rf"/(?:[^/]+-)?kubepods(?:-(?:{_QUALITY}))?-pod{_SLICE_UID}\.slice{_BELOW}"
    ),
)
_CONTAINER = re.compile(r"(?:crio-)?([0-9a-f]{64})|(?:cri-containerd|crio|docker)-([0-9a-f]{64})\.scope")

_BESIDE = re.compile(
    rf"(?:{'|'.join(re.escape(runtime) for runtime in RUNTIMES)})"
    rf"/(?:[^/:]+-)?kubepods(?:-(?:{_QUALITY}))?-pod{_SLICE_UID}\.slice"
    r":(?:cri-containerd|crio):(?P<container>[0-9a-f]{64})(?:/(?s:.+))?"
)

# systemd delegates services and scopes; neither these nor its other units have pods below them.
_NO_PODS_BELOW = re.compile(r".*\.(?:service|scope|mount|socket|swap)|kubepods|.*kubepods\.slice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The pod and the container that a cgroup is in; no container where it is only the pod's."""

    pod_uid: str
    container_id: str | None


def place(path: str) -> Place | None:
    """Return whose the cgroup at `path` is, None where it is no pod's.

    `path` is below the hierarchy's root, or as /proc/PID/cgroup shows it in a cgroup namespace: "/../…".
    """
    whole = re.sub(r"\A(?:/\.\.)+(?=/)", "", path)
    if any(name in {"", ".", ".."} for name in whole.split("/")[1:]):
        return None
    if beside := _BESIDE.fullmatch(whole):
        return Place(pod_uid=beside["uid"].replace("_", "-"), container_id=beside["container"])
    found = next(filter(None, (pattern.fullmatch(whole) for pattern in _POD)), None)
    if found and not _can_be_above(found):
        return None
    if not found and whole != path:
        found = next(filter(None, (pattern.fullmatch(whole) for pattern in _POD_NEXT_TO_OURS)), None)
    if not found:
        return None
    container = _CONTAINER.fullmatch((found["below"] or "").partition("/")[0])
    return Place(
        pod_uid=found["uid"].replace("_", "-"),
        container_id=container[1] or container[2] if container else None,
    )


def stem_of_top(path: str) -> str | None:
    """Return what stands before "kubepods" in the name of the cgroup that all pods are in, None for others.

    That is "" for kubepods and kubepods.slice, "kubelet-" for kubelet-kubepods.slice.
    """
    found = _TOP.fullmatch(path)
    return found["stem"] or "" if found and _can_be_above(found) else None


def may_be_above(name: str) -> bool:
    """Return whether a cgroup of that name may have the one that all pods are in somewhere below it."""
    return not _NO_PODS_BELOW.fullmatch(name)


def _can_be_above(found: re.Match[str]) -> bool:
    # A slice is in the one that its name begins with; the stem of kubelet-kubepods.slice is "kubelet-".
    above, stem = found["above"].split("/")[1:], found.groupdict().get("stem")
    if not all(may_be_above(name) for name in above):
        return False
    if stem:
        return above[-1:] == [f"{stem[:-1]}.slice"]
    return stem is None or not above or not above[-1].endswith(".slice")
