"""What is stopped where: compares and merges the results of the kernel tests.

    python -m tests.matrix check RESULT...     has anything become worse than what is committed?
    python -m tests.matrix update RESULT...    write docs/enforcement-matrix.json and .md

A result is the file that one run of tests/kernel leaves behind (CLOUDTASER_MATRIX_OUT). The committed
file names a kernel by its major and minor version, so that a security update does not change it.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parents[1] / "docs"
NAME = "enforcement-matrix"
LAYERS = ("lsm", "fmod_ret", "tracepoint")


class MatrixError(Exception):
    """A file is not what it should be; the message names it."""


class Where(NamedTuple):
    """One layer on one kernel, booted in one way."""

    kernel: str
    boot: str
    layer: str

    @property
    def order(self) -> tuple[object, ...]:
        """What to sort by: 5.10 comes before 6.1."""
        layer = LAYERS.index(self.layer) if self.layer in LAYERS else len(LAYERS)
        return (layer, self.layer, self.boot, _number(self.kernel))


class What(NamedTuple):
    """One kind of attack on one vector, under one mode."""

    vector: str
    way: str
    mode: str
    abi: str
    door: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many attempts were made and what became of them.

    One attempt can count twice: what was merely detected has leaked as well.
    """

    attempts: int
    killed: int
    denied: int
    detected: int
    leaked: int

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise MatrixError("a cell without attempts says nothing")
        if not all(0 <= count <= self.attempts for count in asdict(self).values()):
            raise MatrixError("a cell counts more than its attempts")

    @property
    def hole(self) -> bool:
        """Whether the commit says that this way in is open: then how much comes through is chance.

        What is only detected leaks by intention and is no hole.
        """
        return self.leaked > 0 and self.detected < self.attempts

    @property
    def leak_rate(self) -> Fraction:
        """The share of attempts that got at the secret."""
        return Fraction(self.leaked, self.attempts)

    @property
    def stop_rate(self) -> Fraction:
        """The share of attempts that were killed or denied."""
        return Fraction(self.killed + self.denied, self.attempts)

    @property
    def notice_rate(self) -> Fraction:
        """The share of attempts that were stopped or at least reported."""
        return Fraction(self.killed + self.denied + self.detected, self.attempts)


Cells = Mapping[tuple[Where, What], Counts]


# Reading.


def read(paths: Iterable[Path]) -> Cells:
    """Read result files into one set of cells; no two files may tell of the same cell."""
    cells: dict[tuple[Where, What], Counts] = {}
    for path in paths:
        for key, counts in _rows(path, [_parsed(path)]):
            if key in cells:
                raise MatrixError(f"{path}: another result has this cell already: {_name(*key)}")
            cells[key] = counts
    return cells


def read_committed(path: Path) -> Cells:
    """Read the committed file; before there is one, nothing is committed."""
    if not path.exists():
        return {}
    return dict(_rows(path, _parsed(path)["rows"]))


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise MatrixError(f"{path}: cannot be read: {err}") from err


def _rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[tuple[Where, What], Counts]]:
    try:
        for row in rows:
            where = Where(_major_minor(row["kernel"]), " ".join(row["boot"].split()), row["layer"])
            for cell in row["cells"]:
                what = What(*(str(cell[field]) for field in What._fields))
                counts = Counts(**{field: int(cell[field]) for field in Counts.__dataclass_fields__})
                yield (where, what), counts
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise MatrixError(f"{path}: is no result of the kernel tests: {err!r}") from err
    except MatrixError as err:
        raise MatrixError(f"{path}: {err}") from err


def _major_minor(kernel: str) -> str:
    found = re.match(r"\d+\.\d+", kernel)
    if found is None:
        raise MatrixError(f"{kernel!r} is no kernel version")
    return found.group()


# Comparing.


def worse(committed: Cells, seen: Cells) -> list[str]:
    """Name each cell in which the commit promises more than the run saw.

    Rates decide, since a quick run makes fewer attempts than a thorough one. What was promised of the
    newest kernel holds for the one that has followed it since.
    """
    committed = _followed(committed, seen)
    return [
        f"{_name(*key)}: {'; '.join(reasons)}"
        for key, promised in sorted(committed.items(), key=_by_order)
        if (reasons := _reasons(promised, seen.get(key)))
    ]


def _followed(committed: Cells, seen: Cells) -> Cells:
    newest, follower = _newest(committed), _newest(seen)
    if newest is None or follower is None or _number(follower) <= _number(newest):
        return committed
    return {
        (where._replace(kernel=follower) if where.kernel == newest else where, what): counts
        for (where, what), counts in committed.items()
    }


def _newest(cells: Cells) -> str | None:
    return max((where.kernel for where, _ in cells), key=_number, default=None)


def _number(kernel: str) -> tuple[int, ...]:
    return tuple(map(int, kernel.split(".")))


def _reasons(promised: Counts, found: Counts | None) -> list[str]:
    if found is None:
        return ["was not tested"]
    if promised.hole:
        return []
    reasons = []
    if found.leak_rate > promised.leak_rate:
        reasons.append(f"leaked {_share(promised, 'leaked')} before and {_share(found, 'leaked')} now")
    if found.stop_rate < promised.stop_rate:
        before = f"killed {_share(promised, 'killed')}, denied {_share(promised, 'denied')}"
        now = f"killed {_share(found, 'killed')}, denied {_share(found, 'denied')}"
        reasons.append(f"{before} before; {now} now")
    if not reasons and found.notice_rate < promised.notice_rate:
        reasons.append(f"detected {_share(promised, 'detected')} before, {_share(found, 'detected')} now")
    return reasons


def _share(counts: Counts, field: str) -> str:
    return f"{getattr(counts, field)} of {counts.attempts}"


def _name(where: Where, what: What) -> str:
    return f"{where.kernel} ({where.boot}) {where.layer}: {' '.join(filter(None, what))}"


def _by_order(item: tuple[tuple[Where, What], Counts]) -> tuple[object, ...]:
    (where, what), _ = item
    return (where.order, what)


# Writing.


def merged(committed: Cells, seen: Cells) -> Cells:
    """Return what was committed, with each layer, kernel and boot of the run in place of its old cells."""
    renewed = {where for where, _ in seen}
    kept = {key: counts for key, counts in committed.items() if key[0] not in renewed}
    return {**kept, **seen}


def as_json(cells: Cells) -> str:
    """Render the committed file: sorted, and one cell a line, so that a diff shows what changed."""
    rows = []
    for where, group in groupby(sorted(cells.items(), key=_by_order), key=lambda item: item[0][0]):
        lines = [json.dumps(what._asdict() | asdict(counts)) for (_, what), counts in group]
        head = json.dumps(where._asdict()).removesuffix("}")
        rows.append(head + ', "cells": [\n  ' + ",\n  ".join(lines) + "\n]}")
    return '{"rows": [\n' + ",\n".join(rows) + "\n]}\n"


INTRODUCTION = """\
# What is stopped where

Made by `python -m tests.matrix update` from real attacks on real kernels; do not edit. Each attack was
tried many times, from another process, and its success was judged by whether the secret arrived there.

**killed**: the attacker was killed and got nothing. **denied**: the call failed and got nothing.
**detected**: it was reported, and not hindered. A plain word holds for every attempt; anything less is
told in numbers. An empty field was not tested.
"""


def as_markdown(cells: Cells) -> str:
    """Render the page for readers: one table for each layer and boot, with a column for each kernel."""
    parts = [INTRODUCTION]
    items = sorted(cells.items(), key=_by_order)
    for (layer, boot), group in groupby(items, key=lambda item: (item[0][0].layer, item[0][0].boot)):
        table = dict(group)
        kernels = list(dict.fromkeys(where.kernel for where, _ in table))
        lines = [f"## {layer}, booted with `{boot}`" if boot else f"## {layer}", ""]
        lines.append(_line("vector", "way", "mode", "doors (ABI)", *kernels))
        lines.append(_line(*["---"] * (4 + len(kernels))))
        # Doors that end alike share a line, so that the one that does not is seen.
        alike: dict[tuple[str, ...], list[What]] = {}
        for what in sorted({what for _, what in table}):
            found = (table.get((Where(kernel, boot, layer), what)) for kernel in kernels)
            told = (_verdict(counts) if counts else "" for counts in found)
            alike.setdefault((what.vector, what.way, what.mode, *told), []).append(what)
        for (vector, way, mode, *verdicts), whats in alike.items():
            lines.append(_line(vector, way, mode, _doors(whats), *verdicts))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _doors(whats: Iterable[What]) -> str:
    abis: dict[str, list[str]] = {}
    for what in whats:
        abis.setdefault(what.door, []).append(what.abi)
    return ", ".join(f"{door} ({', '.join(abis[door])})" for door in sorted(abis))


def _line(*fields: str) -> str:
    return f"| {' | '.join(fields)} |"


def _verdict(counts: Counts) -> str:
    outcomes = ("killed", "denied", "detected")
    happened = [name for name in outcomes if getattr(counts, name)]
    # An attempt that was only detected leaks by intention; that is said by the word itself.
    leaked = counts.leaked and counts.detected < counts.attempts
    if len(happened) == 1 and getattr(counts, happened[0]) == counts.attempts and not leaked:
        return happened[0]
    if counts.leaked == counts.attempts and not happened:
        return "**leaks**"
    told = [f"{name} {_share(counts, name)}" for name in happened]
    if counts.leaked:
        told.append(f"**leaked {_share(counts, 'leaked')}**")
    return ", ".join(told) or "nothing came of it"


def main(arguments: Sequence[str] | None = None, *, docs: Path = DOCS) -> int:
    """Compare or merge result files with what is committed."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=main.__doc__)
    parser.add_argument("verb", choices=("check", "update"))
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="with update: forget kernels, boots and layers that this run does not have",
    )
    asked = parser.parse_args(arguments)
    try:
        committed = read_committed(docs / f"{NAME}.json")
        seen = read(asked.results)
    except MatrixError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    if asked.verb == "check":
        return _check(committed, seen)
    cells = seen if asked.replace else merged(committed, seen)
    docs.mkdir(exist_ok=True)
    (docs / f"{NAME}.json").write_text(as_json(cells), encoding="utf-8")
    (docs / f"{NAME}.md").write_text(as_markdown(cells), encoding="utf-8")
    print(f"{len(cells)} cells, {len(seen)} of them from this run")
    return 0


def _check(committed: Cells, seen: Cells) -> int:
    complaints = worse(committed, seen)
    for complaint in complaints:
        print(complaint)
    new = len(seen.keys() - committed.keys())
    print(f"{len(committed)} cells committed, {len(complaints)} worse in this run, {new} new in it")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
