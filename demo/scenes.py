"""The two runs: every attack on a wrapper without an agent, then on one that an agent protects."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo import attacks
from demo.agent_process import AgentProcess, Event
from demo.attacks import ATTACKS, Attack, Attempt
from demo.wrapper import Wrapper

# How long an event may take from the kernel to the agent's output; it takes milliseconds.
_EVENT_S = 5.0

# What the agent did, from the weakest to the strongest.
_OUTCOMES = ("detected", "denied", "killed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One attack: how it went, the strongest event about it, and whether the wrapper lived on."""

    attack: Attack
    attempt: Attempt
    event: Event | None
    survived: bool

    @property
    def stopped(self) -> str:
        """What became of the attempt: killed, denied, reported, or nothing at all."""
        outcome = self.event["outcome"] if self.event else ""
        if self.attempt.killed or outcome == "killed":
            return "killed"
        return "reported" if outcome == "detected" else outcome


def without_agent(program: Path, folder: Path, tell: Callable[[str], None]) -> list[Trial]:
    """Attack a wrapper that nobody protects."""
    with Wrapper(program) as wrapper:
        return [_try(attack, wrapper, None, folder / f"off-{at}", tell) for at, attack in enumerate(ATTACKS)]


def with_agent(program: Path, agent: AgentProcess, folder: Path, tell: Callable[[str], None]) -> list[Trial]:
    """Attack a wrapper that a running agent protects from its exec on."""
    with Wrapper(program) as wrapper:
        return [_try(attack, wrapper, agent, folder / f"on-{at}", tell) for at, attack in enumerate(ATTACKS)]


def _try(
    attack: Attack, wrapper: Wrapper, agent: AgentProcess | None, folder: Path, tell: Callable[[str], None]
) -> Trial:
    tell(attack.title)
    attempt = attacks.run(attack, wrapper, folder)
    event = _strongest(agent, wrapper.pid, attempt.pid) if agent else None
    return Trial(attack=attack, attempt=attempt, event=event, survived=wrapper.answers())


def _strongest(agent: AgentProcess, wrapper: int, attacker: int) -> Event | None:
    def about_it(event: Event) -> bool:
        offender = event["offender"]
        # gcore is a script: its gdb is the offender, and its child.
        by_attacker = bool(offender) and attacker in (offender["tgid"], offender["ppid"])
        return event["type"] == "attempt" and by_attacker and event["target"]["pid"] == wrapper

    events = agent.wait_for(about_it, _EVENT_S)
    return max(events, key=lambda event: _OUTCOMES.index(event["outcome"]), default=None)
