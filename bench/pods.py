"""What the agent holds and does on a node that is full of pods: memory, and processor time while nothing is.

The pods are an API server's word and directories of cgroups, without processes.
"""

import json
import os
import secrets
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.hierarchy import hierarchy
from bench.memory import Memory, family, of_process, total
from bench.programs import WARD, ProgramError, Running
from demo.agent_process import PATIENCE_S, AgentProcess, AgentProcessError

PODS, CONTAINERS = 250, 2

_NODE = "bench-node"
_ABOVE = Path("kubepods/burstable")
_READY = "ready: "
_SERVER = Path(__file__).parent / "pods_server.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPods:
    """The agent on a node with so many pods and containers in each.

    `ready` is in seconds; `processor` is the part of one processor that it used over `idle` seconds in which
    nothing happened.
    """

    pods: int
    containers: int
    ready: float
    agent: Memory
    with_children: Memory
    idle: float
    processor: float


def measure(idle_s: float, tell: Callable[[str], None]) -> OnPods:
    """Start the agent beside that many pods, and look at it once it knows them all."""
    tell(f"start with {PODS} pods, and {idle_s:g} s in which nothing happens")
    pods = {str(uuid.uuid4()): [secrets.token_hex(32) for _ in range(CONTAINERS)] for _ in range(PODS)}
    with tempfile.TemporaryDirectory(prefix="cloudtaser-bench-") as folder:
        kubeconfig = Path(folder) / "kubeconfig"
        with (
            _cgroups(pods),
            Running([sys.executable, str(_SERVER)]) as server,
            _Agent(
                *("--standalone", "false", "--kubeconfig", str(kubeconfig), "--node", _NODE),
                # What starts in the pods of others who use this machine is left alone.
                *("--unknown-pods", "ignore", "--protect-exe", WARD),
            ) as agent,
        ):
            asked = {"node": _NODE, "kubeconfig": str(kubeconfig), "pods": pods}
            if server.ask(json.dumps(asked)) != "serving":
                raise ProgramError("the API server of the benchmark does not serve")
            ready = agent.wait_until_ready()
            processor = _used_while_idle(agent.pid, idle_s)
            return OnPods(
                pods=PODS,
                containers=CONTAINERS,
                ready=ready,
                agent=of_process(agent.pid),
                with_children=total([of_process(pid) for pid in family(agent.pid)]),
                idle=idle_s,
                processor=processor,
            )


class _Agent(AgentProcess):
    def wait_until_ready(self) -> float:
        # With Kubernetes the line that it has started comes first: the pods are still to be listed.
        said = ""
        while line := self._log.next(PATIENCE_S):
            said = line.text
            if said.startswith("degraded"):
                break
            if said.startswith(_READY):
                return line.at - self._began
        raise AgentProcessError(said or "the agent did not start")


def _used_while_idle(pid: int, seconds: float) -> float:
    before, began = _processor_s(pid), time.monotonic()
    time.sleep(seconds)
    return (_processor_s(pid) - before) / (time.monotonic() - began)


def _processor_s(pid: int) -> float:
    # After the name, which may have anything in it, utime and stime are the twelfth and thirteenth.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _cgroups(pods: Mapping[str, list[str]]) -> Iterator[None]:
    found = hierarchy()
    if found is None:
        raise ProgramError("no cgroups are mounted that tell pods apart")
    made: list[Path] = []
    try:
        for uid, containers in pods.items():
            pod = found.mount / _ABOVE / f"pod{uid}"
            pod.mkdir(parents=True)
            made.append(pod)
            for container in containers:
                (pod / container).mkdir()
                made.append(pod / container)
        yield
    finally:
        # Those above last: others may have pods in them.
        for path in (*reversed(made), found.mount / _ABOVE, (found.mount / _ABOVE).parent):
            with suppress(OSError):
                path.rmdir()
