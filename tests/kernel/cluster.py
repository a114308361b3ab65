"""An agent in Kubernetes mode beside an API server of the test's own; containers are in pod_node.py."""

import contextlib
import ctypes
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil

from tests.api_server import NODE, ApiServer, Request, node
from tests.kernel.agent import START_S, Agent
from tests.kernel.attacks import Attack, Tally
from tests.kernel.build import Programs
from tests.kernel.cases import Case
from tests.kernel.victim import Victim, Whereabouts
from tests.kernel.waiting import PATIENCE_S, wait_until

_CLONE_NEWUTS = 0x04000000  # linux/sched.h
READ = Case(vector="process-vm-read")


class ClusterAgent(Agent):
    """A running agent that follows pods; its pages can be read before it is ready."""

    def __init__(self, kubeconfig: Path, *arguments: str) -> None:
        super().__init__(
            *("--standalone", "false", "--kubeconfig", str(kubeconfig), "--node", NODE, *arguments)
        )

    def listening(self) -> Self:
        """Wait until its HTTP server answers, which is before it protects anything."""
        port = wait_until(lambda: self._port() or not self.alive, "it listens")
        assert self.alive, self.diagnostics
        self._url = self._url or f"http://127.0.0.1:{port}"
        return self

    def wait_ready(self) -> Self:
        """Wait until it says that it protects."""
        self.wait_for_line("ready: ", patience_s=START_S)
        return self

    def wait_for_line(self, beginning: str, since: int = 0, patience_s: float = PATIENCE_S) -> str:
        """Wait for a line of its log, of those after `since`, and return it."""
        found: list[str] = []

        def said() -> bool:
            found.extend(line for line in self.diagnostics[since:] if line.startswith(beginning))
            return bool(found)

        self._wait(said, f"a line that begins with {beginning!r}", patience_s)
        return found[0]

    def lines(self, part: str) -> list[str]:
        """Return the lines of its log so far that have `part` in them."""
        return [line for line in self.diagnostics if part in line]

    def readiness(self) -> tuple[int, str]:
        """Read /readyz now."""
        status, text = self.get("/readyz")
        return status, text.rstrip("\n")

    def value(self, name: str, **labels: str) -> float:
        """Read one sample of its metrics now."""
        found = [
            value for each, had, value in self._samples() if each == name and labels.items() <= had.items()
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    def _port(self) -> int | None:
        with contextlib.suppress(psutil.Error):
            for each in psutil.Process(self.pid).net_connections("tcp"):
                if each.status == psutil.CONN_LISTEN:
                    return int(each.laddr.port)
        return None


class Cluster:
    """An API server with one node, and the agents that the test starts; `with` ends them all.

    They protect by a name that nothing else has, as other tests' agents run beside them; and they ignore
    what starts in other tests' pods.
    """

    _numbers = itertools.count()

    def __init__(self, directory: Path, programs: Programs) -> None:
        self.socket = directory / "agent.sock"
        self.programs = programs
        self.wrapper = directory / f"ct-c{next(self._numbers)}-{os.getpid()}"
        shutil.copy(programs.nobody(), self.wrapper)
        self._undo = ExitStack()
        self.api = self._undo.enter_context(ApiServer())
        self.kubeconfig = self.api.write_kubeconfig(directory / "kubeconfig")
        self.api.put_node(node())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def begin(self, *arguments: str, kubeconfig: Path | None = None, named: bool = True) -> ClusterAgent:
        """Start an agent, and wait for nothing; without `named` it is not told whom to protect."""
        agent = ClusterAgent(
            kubeconfig or self.kubeconfig,
            *("--socket-path", str(self.socket), "--unknown-pods", "ignore"),
            *(("--protect-exe", self.wrapper.name) if named else ()),
            *arguments,
        )
        self._undo.callback(agent.kill)
        return agent

    def start(self, *arguments: str) -> ClusterAgent:
        """Start an agent and wait until it is ready."""
        return self.begin(*arguments).wait_ready()

    def begin_as(self, host: str, *arguments: str) -> ClusterAgent:
        """Start an agent that goes by another host name, as each pod has its own; wait for nothing."""
        begun: list[ClusterAgent] = []

        # The name is of the thread that sets it and of what that starts: nobody else is called so.
        def begin() -> None:
            _leave_host_name()
            Path("/proc/sys/kernel/hostname").write_text(host)
            begun.append(self.begin(*arguments))

        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
        return begun[0]

    @contextlib.contextmanager
    def victim(self) -> Iterator[Victim]:
        """A wrapper by its name, which must survive."""
        with Victim([self.wrapper]) as victim:
            yield victim
            victim.check()

    def attack(
        self, victim: Victim, case: Case = READ, trials: int = 7, target: Whereabouts | None = None
    ) -> Tally:
        """Attack a victim, or a process that it speaks for, and return what the watcher saw."""
        return Attack(programs=self.programs, victim=victim, case=case, trials=trials, target=target).run()

    def assert_guarded(self, victim: Victim, trials: int = 7) -> None:
        """Assert that nothing gets out of a victim, and that whoever tries is killed."""
        tally = self.attack(victim, trials=trials)
        assert (tally.leaked, tally.killed) == (0, trials)

    def asked(self, path: str, method: str | None = None) -> list[Request]:
        """Return the requests so far with `path` in theirs."""
        return [
            each for each in list(self.api.requests) if path in each.path and method in (None, each.method)
        ]


def is_attempt(case: Case) -> Callable[[dict[str, Any]], bool]:
    """Return what accepts the events of attempts through a case's vector."""
    return lambda event: event["type"] == "attempt" and event["vector"] == case.vector


def _leave_host_name() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(_CLONE_NEWUTS) == 0, os.strerror(ctypes.get_errno())
