"""How long the agent takes to be ready and to stop, and how much memory it holds once it is ready."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.memory import Memory, family, of_process, total
from bench.programs import WARD
from demo.agent_process import AgentProcess, Start

_STARTED = re.compile(r"started in ([\d.]+) s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Parts of a start, in seconds."""

    imports: float  # Python and what it imports
    attach: float  # survey, compile, load, attach, scan
    selftest: float  # and all that comes after it until the ready line


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """Several starts: seconds until ready and until stopped, the median phases, and the largest memory."""

    ready: tuple[float, ...]
    stopped: tuple[float, ...]
    phases: Phases | None
    agent: Memory
    with_children: Memory


def measure(count: int, tell: Callable[[str], None]) -> Starts:
    """Start the agent so many times, one after the other."""
    starts: list[Start] = []
    stopped: list[float] = []
    agents: list[Memory] = []
    families: list[Memory] = []
    for number in range(count):
        tell(f"start {number + 1} of {count}")
        with AgentProcess("--protect-exe", WARD) as agent:
            starts.append(agent.start())
            agents.append(of_process(agent.pid))
            families.append(total([of_process(pid) for pid in family(agent.pid)]))
            asked = time.monotonic()
        stopped.append(time.monotonic() - asked)
    return Starts(
        ready=tuple(start.seconds for start in starts),
        stopped=tuple(stopped),
        phases=typical([phases for start in starts if (phases := phases_of(start))]),
        agent=max(agents, key=lambda memory: memory.resident_bytes),
        with_children=max(families, key=lambda memory: memory.proportional_bytes),
    )


def phases_of(start: Start) -> Phases | None:
    """Split a start by its log, or return None where the log no longer tells.

    The agent says nothing until its programs are attached, and says in the end how long it took without
    Python's own start.
    """
    matched = _STARTED.match(start.log[-1].text)
    if not matched:
        return None
    imports = start.log[-1].at - start.began - float(matched[1])
    attached = start.log[0].at - start.began
    return Phases(imports=imports, attach=attached - imports, selftest=start.seconds - attached)


def typical(phases: Sequence[Phases]) -> Phases | None:
    """Return the medians, of which the sum need not be that of any start."""
    if not phases:
        return None
    return Phases(
        imports=median(each.imports for each in phases),
        attach=median(each.attach for each in phases),
        selftest=median(each.selftest for each in phases),
    )
