"""What this node enforces, vector by vector, told for people and programs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.config import Config
from agent.preflight import Plan
from agent.selftest import Trial
from agent.vectors import Action, Layer, Outcome, Vector, outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is asked about a vector and what this node does; `reason` says what would change a less."""

    vector: Vector
    layer: Layer | None
    asked: Action
    enforced: Outcome | None
    reason: str

    @property
    def open(self) -> bool:
        """Whether less is done than asked."""
        return self.enforced is None or self.enforced < self.asked


def examine(config: Config, plan: Plan) -> tuple[Finding, ...]:
    """Return what becomes of each vector on this node."""
    return tuple(
        _finding(each.vector, each.layer, config.action(each.vector), each.reason) for each in plan.coverage
    )


def _finding(vector: Vector, layer: Layer | None, asked: Action, reason: str) -> Finding:
    enforced = None if layer is None else outcome(asked, layer)
    if enforced is not None and enforced < asked:
        reason = "a tracepoint cannot deny: a better layer would, mode strict kills"
    return Finding(vector=vector, layer=layer, asked=asked, enforced=enforced, reason=reason)


def broken(config: Config, plan: Plan, trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Return the trials in which a vector that this node claims to stop was not stopped."""
    claimed = {
        finding.vector.id
        for finding in examine(config, plan)
        if not finding.open and finding.asked is not Action.DETECT
    }
    return tuple(trial for trial in trials if trial.vector.id in claimed and not trial.held)


def not_effective(config: Config, plan: Plan, trials: Sequence[Trial]) -> tuple[str, ...]:
    """Return the vectors that should be stopped and are not, whatever the reason."""
    held = {trial.vector.id for trial in trials if trial.held}
    return tuple(
        each.vector.id
        for each in plan.coverage
        if config.action(each.vector) is not Action.DETECT and each.vector.id not in held
    )
