"""What was aimed at, beside what was measured."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from bench.calls import Cost, Costs
from bench.guests import GuestCosts
from bench.pods import OnPods
from bench.start import Starts

_MIB = 1 << 20
# What neither an agent nor anything else about a call explains: a counted timer tick, a cold cache.
_NOTHING_MEASURABLE = 0.01
# Calls that have nothing to do with anybody's secrets.
_UNRELATED = ("getppid", "map-page", "open-file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """One aim, the figure, and whether it is reached."""

    aim: str
    measured: str
    reached: bool


def judge(starts: Starts, on_pods: OnPods, native: Costs, guests: tuple[GuestCosts, ...]) -> tuple[Aim, ...]:
    """Compare every aim with its figure; aims for which nothing was measured are left out."""
    return (*_of_start(starts), *_of_pods(on_pods), *_of_tracepoint(native), *_of_lsm(guests))


def _of_start(starts: Starts) -> Iterator[Aim]:
    ready = median(starts.ready)
    yield Aim(aim="ready within 1 s", measured=f"{ready:.2f} s", reached=ready <= 1)
    resident = starts.agent.resident_bytes / _MIB
    yield Aim(aim="under 40 MiB resident", measured=f"{resident:.1f} MiB", reached=resident < 40)


def _of_pods(on_pods: OnPods) -> Iterator[Aim]:
    resident = on_pods.agent.resident_bytes / _MIB
    yield Aim(
        aim=f"under 60 MiB resident, Kubernetes, {on_pods.pods} pods",
        measured=f"{resident:.1f} MiB",
        reached=resident < 60,
    )


def _of_tracepoint(native: Costs) -> Iterator[Aim]:
    cost = _cost_of(native, "getppid")
    for when, added in (("nothing", cost.idle), ("a tree", cost.guarding)):
        yield Aim(
            aim=f"under 10 ns added to getppid, {native.layer}, {when} protected",
            measured=f"{added.difference:+.0f} ns, x{added.ratio:.2f}",
            reached=added.difference < 10,
        )


def _of_lsm(guests: tuple[GuestCosts, ...]) -> Iterator[Aim]:
    for costs in (costs for each in guests for costs in each.costs if costs.layer == "lsm"):
        for name in _UNRELATED:
            cost = _cost_of(costs, name)
            yield Aim(
                aim=f"nothing measurable on {cost.case.title}, lsm, a tree protected",
                measured=f"{cost.guarding.difference:+.0f} instructions, x{cost.guarding.ratio:.3f}",
                reached=abs(cost.guarding.ratio - 1) < _NOTHING_MEASURABLE,
            )


def _cost_of(costs: Costs, name: str) -> Cost:
    return next(cost for cost in costs.costs if cost.case.name == name)
