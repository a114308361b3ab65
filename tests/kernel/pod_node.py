"""Pods with real containers, made by runc in cgroups named as kubelet names them, and a node for them.

    with Pods(api, directory, programs) as pods:
        web = pods.add("web", inject="true")
        app = web.start("app")          # a victim, the container's PID 1
        app.execute("ls", "/proc")      # as `kubectl exec` does

What the API server is told of a pod is told at once, so a pod is known before its containers start, and a
container's id as soon as it has started. Everything goes when the context ends, whatever came of the test.
`PodNode` has an agent to it, and what tests ask of both.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from agent.pods import INJECT, ContainerKind
from tests.api_server import ApiServer, pod
from tests.kernel.accounting import Account, account
from tests.kernel.agent import Event
from tests.kernel.attacks import Attack
from tests.kernel.build import Programs
from tests.kernel.cases import SHORT, Case
from tests.kernel.cluster import READ, Cluster
from tests.kernel.kernel_objects import map_keys, objects_of
from tests.kernel.rootfs import make_root
from tests.kernel.tools import Ran, run
from tests.kernel.victim import Victim, Whereabouts
from tests.kernel.waiting import PATIENCE_S, wait_until

_CGROUPS = Path("/sys/fs/cgroup")
# Where pods are told apart: on v1 one hierarchy serves for all.
_HIERARCHY = _CGROUPS / "memory" if (_CGROUPS / "memory").is_dir() else _CGROUPS
_PODS = "kubepods/burstable"
_APPLETS = ("sh", "cat", "dd", "echo", "ls", "ps", "sleep", "true", "unshare")
_CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_PRIVILEGED = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_KILL")

# The main process of a container, and of what holds a pod's namespaces. Both are victims, and neither has a
# name that tells the agent anything.
APP, PAUSE = "/bin/app", "/pause"
# In every container's environment, which its runtime has before the container runs anything.
SETTING = "POD_SETTING=visible"


@dataclass(slots=True, eq=False)
class Container:
    """A running container; `victim` is its main process, or a descendant that speaks for it."""

    name: str
    id: str
    kind: ContainerKind
    victim: Victim
    pid: int  # of its main process, as the host has it
    cgroup: Path
    exec_command: Sequence[str]  # what a command is put after, to be run in the container
    _clean_up: Callable[[], None]

    @property
    def where(self) -> Whereabouts:
        """Where the main process keeps its secret, as the host sees it."""
        return replace(self.victim.where, pid=self.pid, tid=self.pid)

    def seen_from(self, other: "Container") -> Whereabouts:
        """Where the main process keeps its secret, as another container sees it that has it in its /proc."""
        pids, level = _pids(self.pid), len(_pids(other.pid)) - 1
        pid = pids[level] if len(pids) > level else 0
        assert pid, f"{other.name} cannot see {self.name}"
        return replace(self.victim.where, pid=pid, tid=pid)

    def execute(self, *command: str) -> Ran:
        """Run a command in the container, as `kubectl exec` and exec probes do."""
        return run(*self.exec_command, *command)

    def processes(self) -> list[int]:
        """Return every process in it, as the host has it."""
        return _processes(self.cgroup)

    def in_own_namespace(self) -> "Container":
        """Return the container as the process that is in a pid namespace below the container's."""
        (inner,) = (pid for pid in self.processes() if len(_pids(pid)) > len(_pids(self.pid)))
        return replace(self, pid=inner)

    def kill(self) -> None:
        """End it and wait until its cgroup has gone, as after `crictl rm`."""
        _kill_all(self.cgroup)
        self.victim.process.wait(PATIENCE_S)
        self._clean_up()
        remove_cgroup(self.cgroup)
        self.victim.stop()


@dataclass(slots=True, eq=False)
class RunningPod:
    """A pod: what the API server says of it, its cgroup and its containers."""

    name: str
    namespace: str
    uid: str
    pods: "Pods"
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    shared_pids: bool = False
    host_pid: bool = False
    sandbox: Container | None = None
    containers: list[Container] = field(default_factory=list)

    @property
    def cgroup(self) -> Path:
        """Its cgroup, in the hierarchy that the agent looks at; it is there while anything was started."""
        return _HIERARCHY / _PODS / f"pod{self.uid}"

    @property
    def cgroup_id(self) -> int:
        """What the kernel calls it."""
        return self.cgroup.stat().st_ino

    def owner(self, container: Container | None = None) -> dict[str, str | None]:
        """What an event says of who lives in this pod, or in that container of it."""
        return {
            "where": "pod",
            "pod": self.name,
            "pod_uid": self.uid,
            "namespace": self.namespace,
            "container": container.name if container else None,
            "container_id": container.id if container else None,
        }

    def start(
        self,
        name: str = "app",
        *command: str,
        kind: ContainerKind = ContainerKind.REGULAR,
        target: Container | None = None,
        privileged: bool = False,
        told: bool = True,
    ) -> Container:
        """Run a container until its victim speaks; an APP unless another command runs one.

        It joins the pid namespace of `target`, as an ephemeral container with --target does; the sandbox's in
        a pod that shares it; the node's under hostPID; else it has one of its own. `told`: the API server
        learns its id now.
        """
        if self.shared_pids and target is None:
            target = self.begin()
        container = self._run(name, command or (APP,), kind, target, privileged=privileged)
        self.containers.append(container)
        if told:
            self.tell()
        return container

    def begin(self) -> Container:
        """Start the sandbox, which a container runtime does first, and return it."""
        if self.sandbox is None:
            self.sandbox = self._run("pause", (PAUSE,), ContainerKind.REGULAR, None, privileged=False)
        return self.sandbox

    def tell(self) -> None:
        """Let the API server know the pod as it is now."""
        by_kind: dict[ContainerKind, dict[str, str]] = {kind: {} for kind in ContainerKind}
        for container in self.containers:
            by_kind[container.kind][container.name] = container.id
        self.pods.api.put_pod(
            pod(
                self.name,
                namespace=self.namespace,
                uid=self.uid,
                labels=self.labels,
                annotations=self.annotations,
                containers=by_kind[ContainerKind.REGULAR],
                init=by_kind[ContainerKind.INIT],
                ephemeral=by_kind[ContainerKind.EPHEMERAL],
                shared_pids=self.shared_pids,
                host_pid=self.host_pid,
            )
        )

    def say(self, inject: str | None) -> None:
        """Change the label that asks for protection, or take it away."""
        self.labels.pop(INJECT, None)
        if inject is not None:
            self.labels[INJECT] = inject
        self.tell()

    def remove(self, container: Container) -> None:
        """End a container and forget it; the API server is told by `tell`."""
        self.containers.remove(container)
        container.kill()

    def restart(self, container: Container, *, told: bool = True) -> Container:
        """End a container and start one like it, which has another id."""
        self.remove(container)
        return self.start(container.name, kind=container.kind, told=told)

    def delete(self) -> None:
        """Delete the pod as kubelet does: its processes, its cgroups, and last what the API server has."""
        self.stop()
        with contextlib.suppress(KeyError):
            self.pods.api.delete_pod(self.uid)

    def stop(self) -> None:
        """End every container and remove the pod's cgroups."""
        for container in [*reversed(self.containers), *([self.sandbox] if self.sandbox else [])]:
            container.kill()
        self.containers.clear()
        self.sandbox = None
        remove_cgroup(self.cgroup)

    def _run(
        self,
        name: str,
        command: Sequence[str],
        kind: ContainerKind,
        target: Container | None,
        *,
        privileged: bool,
    ) -> Container:
        id_ = secrets.token_hex(32)
        path = f"/{_PODS}/pod{self.uid}/{id_}"
        namespaces = [{"type": each} for each in ("mount", "ipc", "uts")]
        if target is not None:
            namespaces.append({"type": "pid", "path": f"/proc/{target.pid}/ns/pid"})
        elif not self.host_pid:
            namespaces.append({"type": "pid"})
        bundle = self.pods.bundle(id_, path, command, namespaces, privileged=privileged)
        runc, pid_file = self.pods.runc, bundle / "pid"
        cgroup = _HIERARCHY / path.lstrip("/")

        def clean_up() -> None:
            if Path(runc[-1], id_).exists():  # else runc, in the foreground, has removed it
                run(*runc, "delete", "--force", id_)

        with ExitStack() as undo:
            undo.callback(remove_cgroup, cgroup)
            undo.callback(clean_up)
            # In the foreground runc is the container's parent, as a runtime's shim is.
            victim = Victim([*runc, "run", "--bundle", bundle, "--pid-file", pid_file, id_])
            wait_until(pid_file.exists, "runc tells the process")  # it does so when the process runs
            undo.pop_all()
        pid = int(pid_file.read_text())
        return Container(name, id_, kind, victim, pid, cgroup, [*runc, "exec", id_], clean_up)


class Pods:
    """The pods of one node; `api` may be any test's."""

    def __init__(self, api: ApiServer, directory: Path, programs: Programs) -> None:
        self.api = api
        self.root = directory / "rootfs"
        self._directory = directory
        self.runc = ("runc", "--root", str(directory / "state"))
        self._undo = ExitStack()
        _make_root(self.root, programs)
        directory.joinpath("bundles").mkdir()
        # Agents of other tests look at the same cgroups: who is last removes those that pods are in.
        hold = _HIERARCHY / _PODS / f"ct-test-{os.getpid()}-{secrets.token_hex(4)}"
        hold.mkdir(parents=True)
        self._undo.callback(_remove_empty, _PODS)
        self._undo.callback(hold.rmdir)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def add(
        self,
        name: str,
        *,
        inject: str | None = None,
        namespace: str = "shop",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        shared_pids: bool = False,
        host_pid: bool = False,
        sandbox: bool = not SHORT,
        told: bool = True,
    ) -> RunningPod:
        """Make a pod that the API server tells of before anything of it runs, unless it is not `told`."""
        made = RunningPod(
            name=name,
            namespace=namespace,
            uid=str(uuid.uuid4()),
            pods=self,
            labels={**(labels or {}), **({INJECT: inject} if inject else {})},
            annotations=dict(annotations or {}),
            shared_pids=shared_pids,
            host_pid=host_pid,
        )
        if told:
            made.tell()
        self._undo.callback(made.delete)
        if sandbox:
            made.begin()
        return made

    def bundle(
        self,
        id_: str,
        path: str,
        command: Sequence[str],
        namespaces: Sequence[Mapping[str, str]],
        *,
        privileged: bool,
    ) -> Path:
        """Write what runc is to run, and return where."""
        capabilities = list(_PRIVILEGED if privileged else _CAPABILITIES)
        specification: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": list(command),
                "env": ["PATH=/bin", SETTING],
                "cwd": "/",
                "capabilities": dict.fromkeys(
                    ("bounding", "effective", "permitted", "inheritable"), capabilities
                ),
            },
            "root": {"path": str(self.root), "readonly": True},
            "hostname": "pod",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {
                    "destination": "/dev",
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "mode=755"],
                },
            ],
            "linux": {"cgroupsPath": path, "namespaces": list(namespaces)},
        }
        bundle = self._directory / "bundles" / id_
        bundle.mkdir()
        bundle.joinpath("config.json").write_text(json.dumps(specification))
        return bundle


class PodNode:
    """A node with pods: an API server, an agent, and runc."""

    def __init__(self, directory: Path, programs: Programs, *flags: str) -> None:
        self._programs = programs
        self._undo = ExitStack()
        with ExitStack() as undo:
            self.cluster = undo.enter_context(Cluster(directory, programs))
            self.api = self.cluster.api
            self.pods = undo.enter_context(Pods(self.api, directory, programs))
            self.wrapper = f"/bin/{self.cluster.wrapper.name}"
            shutil.copy(self.cluster.wrapper, self.pods.root / "bin")
            self.agent = self.cluster.start(*flags)
            self.api.wait_for_watch()
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._undo:
            assert self.agent.alive, "\n".join(self.agent.diagnostics[-20:])

    def attack(
        self,
        target: Container,
        case: Case = READ,
        *,
        by: Container | None = None,
        before: Sequence[str] = (),
        trials: int = 3,
    ) -> Account:
        """Attack a container's main process, from the host or from another container."""
        return account(self.agent, self.attacker(target, case, by=by, before=before, trials=trials))

    def attacker(
        self,
        target: Container,
        case: Case = READ,
        *,
        by: Container | None = None,
        before: Sequence[str] = (),
        trials: int = 1,
    ) -> Attack:
        """Prepare that attack."""
        return Attack(
            programs=self._programs,
            victim=target.victim,
            case=case,
            target=target.seen_from(by) if by else target.where,
            program=Path("/bin/attack") if by else None,
            before=[*(by.exec_command if by else ()), *before],
            trials=trials,
        )

    @contextlib.contextmanager
    def agent_stopped(self) -> Iterator[None]:
        """Let the agent read nothing, while its programs go on."""
        os.kill(self.agent.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.agent.pid, signal.SIGCONT)

    def seconds_until(self, target: Container, *, stopped: bool) -> float:
        """Attack until attacks are stopped, or until they are not; return how long that took."""
        began = time.monotonic()
        attack = self.attacker(target)
        wait_until(lambda: bool(attack.run().killed) is stopped, f"attacks are stopped: {stopped}")
        return time.monotonic() - began

    def trees(self, of: RunningPod) -> list[dict[str, Any]]:
        """Return the rows of /status about a pod."""
        told = json.loads(self.agent.get("/status")[1])["trees"]
        return [row for row in told if row["pod_uid"] == of.uid]

    def told(self, of: RunningPod, kind: str = "") -> list[Event]:
        """Return the events so far whose target is in a pod; all of them, or of one type."""
        events = list(self.agent.events)
        return [
            event
            for event in events
            if (event["target"] or {}).get("pod_uid") == of.uid and kind in ("", event["type"])
        ]

    def wait_for_tree(self, of: RunningPod, kind: str = "tree-begins", count: int = 1) -> list[Event]:
        """Wait until so many trees of a pod have begun, or ended, and return their events."""
        return self.agent.wait_for(
            lambda event: event["type"] == kind and event["target"]["pod_uid"] == of.uid, count
        )

    def known(self, of: RunningPod) -> bool:
        """Return whether the kernel has been told of a pod."""
        return of.cgroup_id in self.keys("cloudtaser_pods")

    def wait_until_known(self, of: RunningPod) -> None:
        """Wait until the kernel has been told of a pod."""
        wait_until(lambda: self.known(of), f"{of.name} is known")

    def keys(self, map_name: str) -> set[int]:
        """Return the cgroup ids that a map of the agent's has."""
        (found,) = (each for each in objects_of(self.agent.pid) if each.name == map_name)
        return {int.from_bytes(key, sys.byteorder) for key in map_keys(found.id)}


def _make_root(root: Path, programs: Programs) -> None:
    make_root(root, _APPLETS, [programs.attack(), programs.race])
    for empty in ("proc", "dev"):
        root.joinpath(empty).mkdir()
    for copy in (APP, PAUSE):
        shutil.copy(programs.nobody(), root / copy.lstrip("/"))


def _pids(pid: int) -> list[int]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    return [pid]


def _processes(cgroup: Path) -> list[int]:
    found: list[int] = []
    for folder in (cgroup, *_below(cgroup)):
        with contextlib.suppress(OSError):
            found += map(int, (folder / "cgroup.procs").read_text().split())
    return found


def _below(cgroup: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in cgroup.rglob("*") if path.is_dir())


# The same cgroup in every hierarchy that has it.
def _everywhere(path: Path) -> list[Path]:
    roots = [_CGROUPS, *(each for each in _CGROUPS.iterdir() if each.is_dir() and not each.is_symlink())]
    return [root / path for root in roots if (root / path).is_dir()]


# What a failed start has left may still run; and a cgroup lets go of who has ended a moment after that.
def _remove_tree(cgroup: Path) -> None:
    def removed() -> bool:
        _kill_all(cgroup)
        for folder in (*sorted(_below(cgroup), reverse=True), cgroup):
            with contextlib.suppress(OSError):
                folder.rmdir()
        return not cgroup.exists()

    wait_until(removed, f"{cgroup} is removed")


def _kill_all(cgroup: Path) -> None:
    for pid in _processes(cgroup):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _remove_empty(path: str) -> None:
    for each in (Path(path), *Path(path).parents[:-1]):
        for cgroup in _everywhere(each):
            with contextlib.suppress(OSError):  # somebody else's pods are in it
                cgroup.rmdir()


def remove_cgroup(cgroup: Path) -> None:
    """Remove a cgroup from every hierarchy, with all that is in it."""
    for each in _everywhere(cgroup.relative_to(_HIERARCHY)):
        _remove_tree(each)
