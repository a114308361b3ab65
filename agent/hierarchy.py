"""The hierarchy of cgroups that tells pods apart: which of those that are mounted, and where.

What the node has is in the agent's own mountinfo; cgroup v1 has a hierarchy for each controller, v2 has one.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.places import place

_CONTROLLERS = ("memory", "pids", "cpu")  # kubelet makes a pod's cgroup in each; the first one serves


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """A hierarchy of cgroups, at `mount`.

    `controller` is what tells it from the others of cgroup v1, None for v2. `number` is the hierarchy's in
    /proc/PID/cgroup, 0 for v2. `root` is what /proc/PID/cgroup calls the cgroup that is mounted.
    """

    mount: Path
    controller: str | None
    number: int
    root: str = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    type: str
    point: str
    root: str
    options: tuple[str, ...]


def hierarchy(root: Path = Path("/")) -> Hierarchy | None:
    """Return the hierarchy that tells pods apart on this node; None where none is mounted that can.

    A mount that shows nothing but the cgroup of one container is no use: the node's must be mounted.
    """
    mounts = [mount for mount in _mounts(root / "proc/self/mountinfo") if not place(mount.root)]
    # The mount that shows most, and of equals the last, which may hide the others.
    mounts.sort(key=lambda mount: (mount.root.count("/.."), -len(Path(mount.root).parts)))
    unified = [mount for mount in mounts if mount.type == "cgroup2"]
    # kubelet asks what is mounted there, and uses v2 if it is v2, whatever there is elsewhere.
    if not any(mount.point == "/sys/fs/cgroup" for mount in unified):
        numbers = _numbers(root / "proc/cgroups")
        for controller in _CONTROLLERS:
            found = [mount for mount in mounts if mount.type == "cgroup" and controller in mount.options]
            if found and numbers.get(controller):
                return _hierarchy(root, found[-1], controller, numbers[controller])
    return _hierarchy(root, unified[-1], None, 0) if unified else None


def _hierarchy(root: Path, mount: _Mount, controller: str | None, number: int) -> Hierarchy:
    return Hierarchy(
        mount=root / mount.point.lstrip("/"), controller=controller, number=number, root=mount.root
    )


def _mounts(mountinfo: Path) -> list[_Mount]:
    # As in proc_pid_mountinfo(5): 35 32 0:32 ROOT POINT rw,relatime shared:9 - TYPE SOURCE OPTIONS
    found = []
    for line in mountinfo.read_bytes().split(b"\n"):
        before, _, after = line.partition(b" - ")
        if after.startswith((b"cgroup ", b"cgroup2 ")):
            _, _, _, root, point, *_ = (_unescaped(word) for word in before.split(b" "))
            kind, _, options = os.fsdecode(after).split(" ", 2)
            found.append(_Mount(type=kind, point=point, root=root, options=tuple(options.split(","))))
    return found


def _unescaped(word: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), word))


def _numbers(cgroups: Path) -> Mapping[str, int]:
    with suppress(FileNotFoundError):  # as on kernels without cgroup v1
        lines = [line.split() for line in cgroups.read_text().splitlines() if not line.startswith("#")]
        return {name: int(number) for name, number, *_ in lines}
    return {}
