"""The figures as tables for people and as JSON for programs."""

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.aims import Aim
from bench.calls import Added, Costs
from bench.guests import GuestCosts
from bench.memory import Memory
from bench.pods import OnPods
from bench.start import Starts

SCHEMA = "cloudtaser.performance/v1"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All that one run of the benchmark measured; `unmeasured` says what it could not, and why."""

    starts: Starts
    on_pods: OnPods
    native: Costs
    guests: tuple[GuestCosts, ...]
    aims: tuple[Aim, ...]
    unmeasured: tuple[str, ...]


def as_json(figures: Figures) -> dict[str, Any]:
    """Return everything, with the machine that it was measured on."""
    machine = {"kernel": platform.release(), "processor": _processor(), "processors": os.cpu_count()}
    return {"schema": SCHEMA, "machine": machine, **asdict(figures)}


def as_text(figures: Figures) -> Iterator[str]:
    """Yield the lines of the tables."""
    yield f"{_processor()}, {os.cpu_count()} processors, kernel {platform.release()}"
    yield ""
    yield from _starts(figures.starts)
    yield ""
    yield from _on_pods(figures.on_pods)
    yield ""
    yield "Each figure is a median; in brackets the quartiles, as the machine is shared."
    yield ""
    yield f"NANOSECONDS PER CALL, on this machine, layer {figures.native.layer}"
    yield from _costs(figures.native)
    for guest in figures.guests:
        for costs in guest.costs:
            yield ""
            yield f"INSTRUCTIONS PER CALL, in a guest, kernel {guest.kernel}, layer {costs.layer}"
            yield from _costs(costs)
    yield ""
    yield from _table(
        ("AIM", "MEASURED", ""),
        [(aim.aim, aim.measured, "reached" if aim.reached else "missed") for aim in figures.aims],
    )
    yield from figures.unmeasured


def _starts(starts: Starts) -> Iterator[str]:
    yield f"START, {len(starts.ready)} times"
    rows = [("until ready", _seconds(starts.ready))]
    if starts.phases:
        rows += [
            ("  Python and its imports", f"{starts.phases.imports:.2f} s"),
            ("  survey, compile, load, attach, scan", f"{starts.phases.attach:.2f} s"),
            ("  self-test", f"{starts.phases.selftest:.2f} s"),
        ]
    rows.append(("from SIGTERM until gone", _seconds(starts.stopped)))
    rows.append(("memory of the agent", _memory(starts.agent)))
    rows.append(("  with its canary processes", _memory(starts.with_children)))
    yield from _table(None, rows)


def _on_pods(on_pods: OnPods) -> Iterator[str]:
    yield f"KUBERNETES, {on_pods.pods} pods of {on_pods.containers} containers"
    rows = [
        ("until ready", f"{on_pods.ready:.2f} s"),
        ("memory of the agent", _memory(on_pods.agent)),
        ("  with its canary processes", _memory(on_pods.with_children)),
        ("while nothing happens", f"{on_pods.processor:.1%} of a processor, over {on_pods.idle:g} s"),
    ]
    yield from _table(None, rows)


def _seconds(each: Sequence[float]) -> str:
    return f"{median(each):.2f} s ({min(each):.2f} to {max(each):.2f})"


def _memory(memory: Memory) -> str:
    return (
        f"{memory.resident_bytes / _MIB:.1f} MiB resident, {memory.anonymous_bytes / _MIB:.1f} anonymous, "
        f"{memory.proportional_bytes / _MIB:.1f} proportional"
    )


def _costs(costs: Costs) -> Iterator[str]:
    yield from _table(
        ("CALL", "OFF", "NOTHING PROTECTED ADDS", "ONE TREE PROTECTED ADDS"),
        [
            (
                cost.case.title,
                f"{cost.off:.0f}",
                _added(cost.idle),
                _added(cost.guarding),
            )
            for cost in costs.costs
        ],
    )
    if costs.disturbed:
        yield f"{costs.disturbed} of {costs.visits} visits were disturbed by another agent on this machine."


def _added(added: Added) -> str:
    return f"{added.difference:+.0f} ({added.lower:.0f} to {added.upper:.0f}), x{added.ratio:.3f}"


def _table(head: tuple[str, ...] | None, rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    every = [*([head] if head else []), *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(every[0]))]
    for row in every:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
