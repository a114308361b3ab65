"""From a pod to its processes, and from a process to its pod, by the directories of cgroups.

A cgroup is known by its id, which is the inode number of its directory and is never given out twice while
the node is up. So a container that restarts is another cgroup, whatever it is called.
"""

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError
from agent.hierarchy import Hierarchy
from agent.places import LEVELS, QUALITIES, RUNTIMES, Place, may_be_above, place, stem_of_top
from agent.processes import Processes

_MOST_DIRECTORIES = 1024  # looked into for one container's processes: it may make as many as it likes
_FILEID_KERNFS = 0xFE  # since Linux 5.5
_DELETED = " (deleted)"  # what v2 says behind the path of a cgroup that is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupDir:
    """A cgroup."""

    id: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PodDir:
    """The cgroup of a pod; `pod_uid` has dashes in whatever form its name is."""

    id: int
    path: Path
    pod_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerDir:
    """The cgroup of a container."""

    id: int
    path: Path
    container_id: str


def open_by_id(mount: Path, cgroup_id: int) -> int:
    """Open the directory of the cgroup with that id in the hierarchy mounted at `mount`.

    Raises:
        OSError: there is none any more, or the capability CAP_DAC_READ_SEARCH is missing.

    """
    handle = _FileHandle(size=ctypes.sizeof(ctypes.c_uint64), type=_FILEID_KERNFS, id=cgroup_id)
    folder = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        opened: int = ctypes.CDLL(None, use_errno=True).open_by_handle_at(
            folder, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC
        )
        if opened < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(folder)
    return opened


class Cgroups:
    """The cgroups of pods in one hierarchy. What goes while it is looked at is left out, never an error."""

    def __init__(
        self,
        hierarchy: Hierarchy,
        proc: Path = Path("/proc"),
        *,
        open_by_id: Callable[[Path, int], int] = open_by_id,
    ) -> None:
        self._hierarchy = hierarchy
        self._mount = hierarchy.mount
        self._proc = proc
        self._processes = Processes(proc)
        self._open_by_id = open_by_id

    def roots(self) -> list[CgroupDir]:
        """Return every directory that pods' are directly in: kubepods, and one for each quality of service.

        It looks at most three levels below the top, and only into what belongs to the owner of the whole
        hierarchy: the rest was made by somebody to whom a part of it is delegated.
        """
        found: list[CgroupDir] = []
        owner = _owner(self._mount)
        level = [self._mount]
        for _ in range(LEVELS + 1):
            below: list[Path] = []
            for folder in level:
                for directory, status in _directories(folder):
                    if status.st_uid != owner:
                        continue
                    if (stem := stem_of_top(f"/{directory.relative_to(self._mount)}")) is not None:
                        found.append(CgroupDir(id=status.st_ino, path=directory))
                        found += _qualities(directory, stem)
                    elif may_be_above(directory.name):
                        below.append(directory)
            level = below
        return found

    def pods(self, root: Path) -> list[PodDir]:
        """Return the pods that are directly in one of the `roots`."""
        return [
            PodDir(id=status.st_ino, path=path, pod_uid=found.pod_uid)
            for path, status in _directories(root)
            if (found := self._place(path)) and found.container_id is None
        ]

    def containers(self, pod: Path) -> list[ContainerDir]:
        """Return the containers of a pod, its sandbox among them; never the runtime's own processes.

        They are in the pod's directory, or beside it where kubelet and the runtime do not agree on systemd.
        """
        directories = _directories(pod)
        if pod.suffix == ".slice":
            for runtime in RUNTIMES:
                beside = _directories(Path(f"{self._mount}{runtime}"))
                directories += [
                    (path, status) for path, status in beside if path.name.startswith(f"{pod.name}:")
                ]
        return [
            ContainerDir(id=status.st_ino, path=path, container_id=found.container_id)
            for path, status in directories
            if (found := self._place(path)) and found.container_id is not None
        ]

    def processes(self, container: Path) -> list[int]:
        """Return the processes in a cgroup and in those below it, at most 1,024 of them, nearest first."""
        pids: set[int] = set()
        folders = deque([container])
        for _ in range(_MOST_DIRECTORIES):
            if not folders:
                break
            folder = folders.popleft()
            # A threaded cgroup has none to tell (EOPNOTSUPP): they are told by one above it.
            with suppress(OSError):
                pids.update(int(line) for line in (folder / "cgroup.procs").read_bytes().split())
            folders.extend(path for path, _ in _directories(folder))
        return sorted(pids - {0})  # 0 is a process that our pid namespace does not have

    def main_process(self, container: Path, shared_pids: bool) -> int | None:
        """Return the container's first process, None where it has not started or has ended.

        That is PID 1 of the container's own pid namespace. Where it has none of its own, `shared_pids`, it
        is the process that started first. The runtime, before its exec, is none of the container.
        """
        started: list[tuple[int, int]] = []
        for pid in self.processes(container):
            with suppress(AgentError):
                first = shared_pids or self._processes.is_first_of_container(pid)
                if first and not self._processes.is_runtime(pid):
                    started.append((self._processes.start_ns(pid), pid))
        if not started:
            return None
        _, pid = min(started)
        # Had it ended meanwhile, its pid could be a stranger's by now.
        return pid if pid in self.processes(container) else None

    def path_of(self, pid: int) -> str | None:
        """Return the path of the cgroup that the process is in; None where it has gone or is outside `mount`.

        The path begins with "/.." where a cgroup namespace keeps us from knowing all of it.
        """
        path = self._told_by_proc(pid)
        if path is None:
            return None
        if path == "/" and self._hierarchy.controller:
            # On v1 that is what an exiting process shows, too.
            try:
                self._processes.start_ns(pid)
            except AgentError:
                return None
        root = self._hierarchy.root.rstrip("/")
        if f"{path}/".startswith(f"{root}/"):
            return path.removeprefix(root) or "/"
        return path if path.startswith("/../") else None

    def path_by_id(self, cgroup_id: int) -> str | None:
        """Return the path of the cgroup with that id, None if it is gone. No process need be in it."""
        try:
            opened = self._open_by_id(self._mount, cgroup_id)
        except OSError:
            return None
        path = str(Path(f"/proc/self/fd/{opened}").readlink())
        os.close(opened)
        if not f"{path}/".startswith(f"{self._mount}/"):
            return None
        found = path.removeprefix(str(self._mount)) or "/"
        return found if self.id_of(found) == cgroup_id else None  # it may have gone since

    def id_of(self, path: str) -> int | None:
        """Return the id of the cgroup at a path such as `path_of` gives, None if there is none."""
        if ".." in path.split("/"):
            return None
        try:
            return Path(f"{self._mount}{path}").stat().st_ino
        except OSError:
            return None

    def _place(self, path: Path) -> Place | None:
        return place(f"/{path.relative_to(self._mount)}")

    def _told_by_proc(self, pid: int) -> str | None:
        try:
            text = os.fsdecode((self._proc / str(pid) / "cgroup").read_bytes())
        except OSError:
            return None
        for line in text.split("\n"):  # the one character that no cgroup's name has
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            wanted = self._hierarchy.controller
            if wanted in controllers.split(",") if wanted else (number, controllers) == ("0", ""):
                return path if wanted else path.removesuffix(_DELETED)
        return None


class _FileHandle(ctypes.Structure):
    # struct file_handle, with the eight bytes of a kernfs id.
    _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("id", ctypes.c_uint64))


def _qualities(top: Path, stem: str) -> Iterator[CgroupDir]:
    for quality in QUALITIES:
        path = top / (f"{stem}kubepods-{quality}.slice" if top.suffix == ".slice" else quality)
        with suppress(OSError):
            yield CgroupDir(id=path.stat().st_ino, path=path)


def _directories(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # it has just gone
                if entry.is_dir(follow_symlinks=False):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
    return sorted(found, key=lambda each: each[0])


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None
