"""What the agent adds to system calls: the same calls without it and with it, in turns.

The machine is shared and its speed drifts, so a cycle is: agent off, agent on with nothing protected, agent
on with one tree protected; and each is compared with the off before and the off after it.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.neighbours import Patience, agents_programs
from bench.programs import WARD, ProgramError, Programs, Running
from demo.agent_process import AgentProcess, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is timed, and how many make a round of one or two milliseconds."""

    name: str
    title: str
    calls: int


CASES = (
    Case(name="getppid", title="getppid", calls=10_000),
    Case(name="open-file", title="openat+close of a file", calls=1_000),
    Case(name="open-proc-self", title="openat+close of /proc/self/status", calls=500),
    Case(name="spawn", title="fork+exec+wait", calls=5),
    Case(name="map-page", title="mmap+touch+munmap", calls=1_000),
    Case(name="read-cmdline", title="1-byte pread of /proc/P/cmdline", calls=1_000),
)

_EVENT_S = 60.0  # it takes milliseconds

OFF, IDLE, GUARDING = "off", "on, nothing protected", "on, one tree protected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured, and how long in all to wait for other agents to go."""

    cycles: int  # two at least, or there is no spread
    rounds: int  # of each case in a visit
    fewer_calls: int = 1  # a divisor of each case's calls
    patience_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One condition, once: the median cost of a call of each case, in nanoseconds of the clock."""

    condition: str
    costs: Mapping[str, float]
    disturbed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What a condition adds to a call: medians over the cycles, and the quartiles of the difference."""

    cost: float
    difference: float
    lower: float
    upper: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One case: its cost without an agent, how far its visits lie apart, and what each condition adds."""

    case: Case
    off: float
    off_spread: float
    idle: Added
    guarding: Added


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All cases on one layer; `disturbed` of the `visits` shared the machine with another agent."""

    layer: str
    costs: tuple[Cost, ...]
    visits: int
    disturbed: int


def measure(layer: str, effort: Effort, programs: Programs, tell: Callable[[str], None]) -> Costs:
    """Measure every case on one layer."""
    with (
        tempfile.NamedTemporaryFile(prefix="cloudtaser-bench-") as plain,
        Running([programs.calls, plain.name, programs.nothing]) as caller,
    ):
        visits = list(_visits(layer, effort, programs, caller, tell))
    return summarise(layer, visits)


def _visits(
    layer: str, effort: Effort, programs: Programs, caller: Running, tell: Callable[[str], None]
) -> Iterator[Visit]:
    patience = Patience(effort.patience_s)
    for cycle in range(effort.cycles):
        tell(f"{layer}: cycle {cycle + 1} of {effort.cycles}")
        yield _without_agent(effort, programs, caller, patience)
        yield from _with_agent(layer, effort, programs, caller)
    yield _without_agent(effort, programs, caller, patience)


def _without_agent(effort: Effort, programs: Programs, caller: Running, patience: Patience) -> Visit:
    alone = patience.wait()
    with _process(programs.stranger) as stranger:
        costs = _measured(effort, caller, stranger.pid)
    return Visit(condition=OFF, costs=costs, disturbed=not alone or bool(agents_programs()))


def _with_agent(layer: str, effort: Effort, programs: Programs, caller: Running) -> Iterator[Visit]:
    before = agents_programs()
    with AgentProcess("--layer", layer, "--protect-exe", WARD) as agent:
        agent.start()
        ours = agents_programs() - before
        for condition, program in ((IDLE, programs.stranger), (GUARDING, programs.ward)):
            with _process(program) as process:
                if condition == GUARDING:
                    _wait_until_guarded(agent, process.pid)
                costs = _measured(effort, caller, process.pid)
            yield Visit(condition=condition, costs=costs, disturbed=bool(before) or agents_programs() != ours)
            agent.take_events()


# By then the agent has attached all that it has, also what it detaches while nothing is protected.
def _wait_until_guarded(agent: AgentProcess, pid: int) -> None:
    def begins(event: Event) -> bool:
        return bool(event["type"] == "tree-begins" and event["target"]["pid"] == pid)

    if not agent.wait_for(begins, _EVENT_S):
        raise ProgramError("the agent did not report that it protects the benchmark's process")


def _process(program: Path) -> Running:
    process = Running([program])
    process.line()  # it has been executed, and so is protected if it is to be
    return process


def _measured(effort: Effort, caller: Running, pid: int) -> dict[str, float]:
    costs = {}
    for case in CASES:
        calls = max(1, case.calls // effort.fewer_calls)
        answer = caller.ask(f"{case.name} {calls} {effort.rounds} {pid}")
        costs[case.name] = median(int(word) / calls for word in answer.split())
    return costs


def summarise(layer: str, visits: Sequence[Visit]) -> Costs:
    """Compare each visit with the agent on with the visits without it before and after."""
    off = [visit for visit in visits if visit.condition == OFF]
    return Costs(
        layer=layer,
        costs=tuple(_cost(case, visits, off) for case in CASES),
        visits=len(visits),
        disturbed=sum(visit.disturbed for visit in visits),
    )


def _cost(case: Case, visits: Sequence[Visit], off: Sequence[Visit]) -> Cost:
    plain = [visit.costs[case.name] for visit in off]
    around = [(before + after) / 2 for before, after in pairwise(plain)]
    added = {}
    for condition in (IDLE, GUARDING):
        on = [visit.costs[case.name] for visit in visits if visit.condition == condition]
        pairs = list(zip(around, on, strict=True))
        differences = [with_it - without for without, with_it in pairs]
        lower, _, upper = quantiles(differences, method="inclusive")
        added[condition] = Added(
            cost=median(on),
            difference=median(differences),
            lower=lower,
            upper=upper,
            ratio=median(with_it / without for without, with_it in pairs),
        )
    return Cost(
        case=case,
        off=median(plain),
        off_spread=max(plain) - min(plain),
        idle=added[IDLE],
        guarding=added[GUARDING],
    )


def from_json(raw: Mapping[str, Any]) -> Costs:
    """Return what `dataclasses.asdict` and JSON made of a `Costs`."""
    costs = tuple(
        Cost(
            case=Case(**each["case"]),
            off=each["off"],
            off_spread=each["off_spread"],
            idle=Added(**each["idle"]),
            guarding=Added(**each["guarding"]),
        )
        for each in raw["costs"]
    )
    return Costs(layer=raw["layer"], costs=costs, visits=raw["visits"], disturbed=raw["disturbed"])
