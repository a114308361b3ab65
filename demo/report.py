"""What the demo prints: a table of 80 columns at most, and where to look next."""

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo.scenes import Trial

_WIDTH = 80
_GREEN, _RED, _YELLOW, _BOLD = "32", "31", "33", "1"


def coloured() -> bool:
    """Return whether standard output wants colours (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A word or two of the table, and their colour."""

    text: str
    colour: str = ""

    def padded(self, width: int) -> str:
        """Return it as wide as its column, with its colour around the text alone."""
        space = " " * (width - len(self.text))
        return f"{paint(self.text, self.colour)}{space}"


def paint(text: str, colour: str) -> str:
    """Return the text in a colour, if colours are wanted."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and coloured() else text


def say(text: str = "") -> None:
    """Print a paragraph."""
    print(textwrap.fill(text, _WIDTH) if text else "", flush=True)


def leaks(trials: Sequence[Trial], doctor: Mapping[str, Mapping[str, Any]]) -> list[Trial]:
    """Return the trials that got the secret although doctor does not call their vector open."""
    return [
        trial
        for trial in trials
        if trial.attempt.got_secret and not (trial.event and doctor[trial.event["vector"]]["open"])
    ]


def table(off: Sequence[Trial], on: Sequence[Trial], doctor: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what each attack got, and below it why some got more than nothing."""
    reasons: dict[str, None] = {}  # as an ordered set
    rows = [tuple(Cell(text=head, colour=_BOLD) for head in ("ATTACK", "AGENT OFF", "AGENT ON"))]
    for before, after in zip(off, on, strict=True):
        note = ""
        if after.event and doctor[after.event["vector"]]["open"]:
            vector = after.event["vector"]
            reasons[f"{vector} is open on this node: {doctor[vector]['reason']}."] = None
            note = f" ({len(reasons)})"
        rows.append((Cell(text=before.attack.title), _off(before), _on(after, note)))
    widths = [max(len(row[column].text) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(cell.padded(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for number, reason in enumerate(reasons, 1):
        say(f"({number}) {reason}")
    for before in off:
        if not before.attempt.got_secret:
            say(f"{before.attack.title}: got nothing with the agent off either, so this row proves nothing.")


def _off(trial: Trial) -> Cell:
    if trial.attempt.got_secret:
        return Cell(text="got the secret", colour=_RED)
    return Cell(text="got nothing", colour=_YELLOW)


def _on(trial: Trial, note: str) -> Cell:
    stopped = trial.stopped or "unseen"
    if not trial.attempt.got_secret:
        return Cell(text=f"got nothing, {stopped}{note}", colour=_GREEN if trial.stopped else _YELLOW)
    return Cell(text=f"got the secret, {stopped}{note}", colour=_YELLOW if note else _RED)


def wrapper_fate(off: Sequence[Trial], on: Sequence[Trial]) -> None:
    """Say whether the wrappers lived through it."""
    dead = [trial.attack.title for trial in (*off, *on) if not trial.survived]
    if dead:
        say(paint(f"The wrapper did not live through: {', '.join(dead)}.", _RED))
    else:
        say("The wrapper answered after each attack and still ran at the end.")


def next_steps(on: Sequence[Trial]) -> None:
    """Say where to look next, with one of the events that the agent wrote."""
    event = next((trial.event for trial in on if trial.event), None)
    print()
    if event:
        offender, target = event["offender"], event["target"]
        say("Each attempt is one JSON event on the agent's standard output; the first of these said:")
        print(f"  {event['vector']} {event['outcome']} on layer {event['layer']}")
        print(f"  by {offender['exe']} (pid {offender['pid']}, uid {offender['uid']})")
        print(f"  against {target['comm']} (pid {target['pid']})")
    print("What this node can enforce, and what would change each no:")
    print("  .venv/bin/cloudtaser-ebpf doctor")
    print("Protect a process of your own, and watch its events:")
    print("  .venv/bin/cloudtaser-ebpf run --standalone --protect-pid PID")
