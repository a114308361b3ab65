"""What the session saw, for docs/enforcement-matrix.json."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.vectors import Mode
from tests.kernel.attacks import Tally
from tests.kernel.cases import LAYER, Case

_BOOT_WORDS = ("lsm=", "lockdown=")


class Matrix:
    """One cell for each kind of attack under each mode."""

    def __init__(self) -> None:
        self._cells: list[dict[str, Any]] = []

    def add(self, mode: Mode, case: Case, tally: Tally, counted: Mapping[str, int]) -> None:
        """Note what came of an attack."""
        self._cells.append(
            {
                "vector": case.vector,
                "way": case.way,
                "mode": mode.value,
                "abi": case.abi,
                "door": case.door,
                "attempts": tally.attempts,
                "killed": tally.killed,
                "denied": tally.denied,
                "detected": counted.get("detected", 0),
                "leaked": tally.leaked,
            }
        )

    def write(self, path: Path) -> None:
        """Write what was noted, in an order that does not depend on the tests'."""
        words = Path("/proc/cmdline").read_text(encoding="utf-8").split()
        told = {
            "kernel": os.uname().release,
            "boot": " ".join(word for word in words if word.startswith(_BOOT_WORDS)),
            "layer": LAYER.name.lower(),
            "cells": sorted(self._cells, key=lambda cell: tuple(map(str, cell.values()))),
        }
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
