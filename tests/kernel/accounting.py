"""An attack under the agent's eyes, with everything that is known about it afterwards."""

from dataclasses import dataclass

from tests.kernel.agent import Agent, Event
from tests.kernel.attacks import Attack, Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the watcher saw, what the kernel counted, and what was told of it."""

    tally: Tally
    counted: dict[str, int]  # by outcome, for the vector attacked
    others: dict[tuple[str, str], int]  # by vector and outcome, for all others
    events: list[Event]
    lost: dict[str, int]  # events by reason

    @property
    def told(self) -> int:
        """Attempts that have an event, or are known to have none because one offender made too many."""
        return len(self.events) + self.lost.get("rate_limited", 0)


def account(agent: Agent, attack: Attack) -> Account:
    """Run an attack and collect its traces; events come a little later than the counters."""
    vector = attack.case.vector
    seen, before = len(agent.events), agent.counts()
    tally = attack.run()
    counts = agent.counts().since(before)
    expected = sum(counts.of(vector).values()) - sum(counts.lost.values())
    events = agent.wait_for(
        lambda event: event["type"] == "attempt" and event["vector"] == vector, expected, since=seen
    )
    return Account(
        tally=tally,
        counted=counts.of(vector),
        others={key: count for key, count in counts.outcomes.items() if key[0] != vector},
        events=events,
        lost=dict(counts.lost),
    )
