"""Running tests/attacks/attack.c and reading what it saw."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.kernel.build import Programs
from tests.kernel.cases import Case
from tests.kernel.victim import Victim, Whereabouts

_TIMEOUT_S = 540


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What the watcher counted; `other` is what neither worked nor was stopped, which never happens."""

    attempts: int
    killed: int
    denied: int
    leaked: int
    other: int
    last_status: int
    last_error: int

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read the line of attack.c."""
        told = json.loads(line)
        del told["vector"]
        return cls(**told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """An attack on one process of a victim's tree, by one program."""

    programs: Programs
    victim: Victim
    case: Case
    target: Whereabouts | None = None
    program: Path | None = None  # the attacker, if not the usual one
    before: Sequence[Path | str] = ()  # a command that starts the attacker
    trials: int | None = None
    repeat: int = 1
    size: int = 0  # of one process_vm_readv
    inherited: int = -1

    def run(self) -> Tally:
        """Make every trial; the watcher must survive them all."""
        done = subprocess.run(
            self.command(),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            pass_fds=[self.inherited] if self.inherited >= 0 else [],
        )
        assert done.returncode == 0, f"the watcher ended with {done.returncode}: {done.stderr}"
        return Tally.parse(done.stdout)

    def command(self) -> list[str]:
        """Return the command line."""
        case, where = self.case, self.target or self.victim.where
        told = {
            "vector": case.vector,
            "door": case.door,
            "way": case.way,
            "file": "mem" if case.way == "write" else case.way,
            "pid": where.pid,
            "tid": where.tid,
            "address": where.address,
            "scratch_address": where.scratch_address,
            "scratch_file": self.victim.scratch_file,
            "fd": where.fd,
            "secret": where.secret,
            "program": self.programs.wrapper(case.abi),
            "trials": self.trials or case.trials,
            "repeat": self.repeat,
            "size": self.size,
            "inherited": self.inherited,
        }
        attacker = self.program or self.programs.attack(case.abi)
        return [*map(str, self.before), str(attacker), *(f"{key}={value}" for key, value in told.items())]
