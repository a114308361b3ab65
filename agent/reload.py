"""The configuration's file, followed while the agent runs: a change is taken whole or refused whole.

It is told by one look at the file's identity, which also sees how Kubernetes changes a ConfigMap: the file
is a symbolic link to `..data/…`, and `..data` is swapped in one step.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.config import Config
from agent.errors import ConfigError
from agent.options import OPTIONS

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadState:
    """What came of changes so far.

    `refused` has the mistakes of the file that is there now, "" if it is in force. `needs_restart` has the
    keys that it sets to something else than what runs and that cannot change while it runs.
    """

    refused: str = ""
    reloads: int = 0
    refusals: int = 0
    needs_restart: tuple[str, ...] = ()


class ConfigFile:
    """Follows the file that the configuration came from; `state` may be read from any thread."""

    def __init__(
        self,
        path: Path | None,
        load: Callable[[], Config],
        current: Config,
        *,
        stat: Callable[[Path], os.stat_result] = os.stat,
    ) -> None:
        """Take what `load` returned at the start as `current`; without a `path` nothing ever changes."""
        self.state = ReloadState()
        self._path = path
        self._load = load
        self._stat = stat
        self._running = current
        self._outcome: Config | tuple[str, ...] = current
        self._seen: tuple[int, ...] | None = None
        # None, so that the first look reads again: the file may have changed since `current` was read.
        self._read: tuple[int, ...] | None = None

    def poll(self) -> Config | None:
        """Return the configuration to run from now on, None if nothing in force changes.

        To be called every second or so. A file is read when two polls in a row find it the same: one that
        is being written would be read by halves, and a write within the same tick of the clock as the one
        before would never be noticed.
        """
        if self._path is None:
            return None
        found = self._identity(self._path)
        settled, self._seen = found == self._seen, found
        if not settled or found == self._read:
            return None
        self._read = found
        outcome = self._try()
        if outcome == self._outcome:  # touched, or a comment changed
            return None
        self._outcome = outcome
        if isinstance(outcome, Config):
            return self._take(outcome)
        self._refuse(outcome)
        return None

    def _identity(self, path: Path) -> tuple[int, ...]:
        try:
            found = self._stat(path)
        except OSError as error:  # that it is gone is a change like any other
            return (error.errno or 0,)
        return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)

    def _try(self) -> Config | tuple[str, ...]:
        try:
            return self._load()
        except ConfigError as error:
            return error.mistakes
        except Exception:  # noqa: BLE001 - all nodes read the same ConfigMap, so it would end every agent at once
            _log.exception("%s could not be read", self._path)
            return (f"{self._path}: could not be read, see the agent's log",)

    def _take(self, asked: Config) -> Config | None:
        running = self._running
        kept: dict[str, Any] = {each.field: getattr(running, each.field) for each in OPTIONS if not each.live}
        taken = replace(asked, **kept)
        changed = _differing(taken, running)
        needs_restart = _differing(asked, taken)
        before = self.state
        # Before it is said: who reads the line may look at /status next.
        self.state = replace(before, refused="", reloads=before.reloads + 1, needs_restart=needs_restart)
        self._running = taken
        _log.info("configuration taken from %s, changed: %s", self._path, ", ".join(changed) or "nothing")
        if needs_restart and needs_restart != before.needs_restart:
            _log.warning("restart the agent for: %s", ", ".join(needs_restart))
        return taken if changed else None

    def _refuse(self, mistakes: tuple[str, ...]) -> None:
        refused = "; ".join(mistakes)
        self.state = replace(self.state, refused=refused, refusals=self.state.refusals + 1)
        _log.error("configuration refused, the one before stays in force: %s", refused)


def _differing(one: Config, other: Config) -> tuple[str, ...]:
    return tuple(each.key for each in OPTIONS if getattr(one, each.field) != getattr(other, each.field))
