"""What /status tells: all that one node does, for people and their scripts.

The keys stay; more may come. It is open to whoever can reach the metrics port, so there is nothing in it
that helps to attack: no address, no memory, no argument of a process.
"""

import logging
import platform
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Self

import agent
from agent import abi
from agent.config import Config
from agent.events import Attribute, Clocks, TreeId, kind_of, label
from agent.kernel import Kernel
from agent.preflight import Plan
from agent.reload import ReloadState
from agent.selftest import Trial
from agent.vectors import Outcome

SCHEMA = "cloudtaser.status/v1"
_TREES = 4096


class LastError(logging.Handler):
    """Remembers the last thing that the agent complained about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text: str | None = None
        self._at_s = 0.0

    def __enter__(self) -> Self:
        """Listen from now on."""
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        self.text, self._at_s = record.getMessage(), record.created

    def as_dict(self) -> Mapping[str, str] | None:
        """Return the line and when it was said, None if there was none."""
        return None if self.text is None else {"time": _time(self._at_s), "message": self.text}


class Trees:
    """Since when each tree is protected, noted as it is announced."""

    def __init__(self) -> None:
        self._since_ns: OrderedDict[TreeId, int] = OrderedDict()

    def note(self, record: bytes) -> None:
        """Take a record on its way to the sinks."""
        kind = kind_of(record)
        if kind not in (abi.Kind.TREE_BEGINS, abi.Kind.TREE_ENDS):
            return
        told = abi.TreeRecord.from_buffer_copy(record)
        tree = TreeId(pid=told.tree.pid, start_ns=told.tree.start_ns)
        if kind is abi.Kind.TREE_ENDS:
            self._since_ns.pop(tree, None)
        else:
            self._since_ns[tree] = told.header.ktime_ns
            while len(self._since_ns) > _TREES:
                self._since_ns.popitem(last=False)

    def as_list(self, kernel: Kernel, attribute: Attribute, clocks: Clocks) -> list[dict[str, Any]]:
        """Return a row for each protected tree, by pod.

        `gap_seconds` is for how long the wrapper ran before it was protected: 0 where the kernel saw its
        exec, null where nobody noted when it began.
        """
        rows: dict[TreeId, dict[str, Any]] = {}
        for pid, member in sorted(kernel.members().items()):
            tree = TreeId(pid=member.tree.pid, start_ns=member.tree.start_ns)
            if tree not in rows:
                rows[tree] = {
                    **attribute(member.cgroup, 0),
                    "tree": str(tree),
                    "comm": "",
                    "processes": 0,
                    "protected_since": None,
                    "gap_seconds": None,
                }
            row = rows[tree]
            row["processes"] += 1
            if pid != tree.pid:
                continue
            row["comm"] = member.comm.decode(errors="replace")
            since_ns = self._since_ns.get(tree)
            if since_ns is not None:
                row["protected_since"] = _time((since_ns + clocks.monotonic_offset_ns) / 1e9)
                started_ns = member.start_ns + clocks.boottime_offset_ns
                late_ns = since_ns + clocks.monotonic_offset_ns - started_ns
                row["gap_seconds"] = 0.0 if not member.slack_ns else round(max(0, late_ns) / 1e9, 3)
        return sorted(rows.values(), key=lambda row: (row["namespace"] or "", row["pod"] or "", row["tree"]))


def vectors(config: Config, plan: Plan, trials: tuple[Trial, ...]) -> list[dict[str, Any]]:
    """Return a row for each vector: what is asked, the layer that watches it, what the self-test saw."""
    results = {trial.vector.id: trial for trial in trials}
    rows = []
    for each in plan.coverage:
        trial = results.get(each.vector.id)
        rows.append(
            {
                "vector": each.vector.id,
                "layer": label(each.layer) if each.layer is not None else None,
                "asked": label(config.action(each.vector)),
                "selftest": trial.result.value if trial is not None else None,
                "effective": trial is not None and trial.held,
                "reason": each.reason or None,
            }
        )
    return rows


def counters(kernel: Kernel) -> dict[str, Any]:
    """Return what the kernel counted: attempts by vector and outcome, and what it could not record."""
    attempts: dict[str, dict[str, int]] = {}
    for key, count in kernel.attempts().items():
        of_vector = attempts.setdefault(key.vector.id, {label(outcome): 0 for outcome in Outcome})
        of_vector[label(key.outcome)] += count
    return {
        "attempts": attempts,
        "lost": {label(loss): count for loss, count in kernel.losses().items()},
        "protected_processes": kernel.protected_processes(),
        "protected_trees": kernel.protected_trees(),
        "programs_loaded": kernel.programs_loaded(),
    }


def config_file(state: ReloadState) -> dict[str, Any]:
    """Return what came of changes of the configuration's file."""
    return {
        "refused": state.refused or None,
        "reloads": state.reloads,
        "refusals": state.refusals,
        "needs_restart": list(state.needs_restart),
    }


def versions(kernel_release: str) -> dict[str, Any]:
    """Return what runs here."""
    return {"agent": agent.__version__, "kernel": kernel_release, "python": platform.python_version()}


def now(clock: Callable[[], float] = time.time) -> str:
    """Return the time as the page shows it."""
    return _time(clock())


def _time(since_1970_s: float) -> str:
    return datetime.fromtimestamp(since_1970_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
