"""The attackers: real programs, each after the wrapper's secret in its own way.

Whether one got it is decided by looking for the secret's bytes in all that it wrote.
"""

import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.lines import Lines
from demo.wrapper import Wrapper

_PAGE = mmap.PAGESIZE
_READER = Path(__file__).with_name("read_memory.py")
# gdb takes a second; only a failure takes this long.
_ATTACK_S = 120.0

# Attackers get no more than a shell would give them: above all not the secret, by inheritance.
_ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": "/nonexistent"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an attacker knows: where to look and where it may write."""

    pid: int
    address: int
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attacker: what it does, the program that it needs, and its command line.

    `watches`: it has to be there while the wrapper uses its secret.
    """

    title: str
    tool: str
    command: Callable[[Target], Sequence[str]]
    watches: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How an attack went: who made it, how that process ended, and whether it wrote the secret."""

    pid: int
    status: int
    got_secret: bool

    @property
    def killed(self) -> bool:
        """Whether the attacker itself was killed."""
        return self.status == -signal.SIGKILL


def _dd(target: Target) -> Sequence[str]:
    source, page = f"if=/proc/{target.pid}/mem", f"skip={target.address // _PAGE}"
    return ("dd", source, f"of={target.folder}/loot", f"bs={_PAGE}", page, "count=1")


def _gdb(target: Target) -> Sequence[str]:
    dump = f"dump binary memory {target.folder}/loot {target.address} {target.address + _PAGE}"
    return ("gdb", "--nx", "--batch", "--readnever", "--pid", str(target.pid), "--eval-command", dump)


ATTACKS = (
    Attack(title="dd copies /proc/P/mem", tool="dd", command=_dd),
    Attack(title="gdb attaches and dumps memory", tool="gdb", command=_gdb),
    Attack(
        title="strace -p watches its calls",
        tool="strace",
        command=lambda target: (
            *("strace", "--trace=write", "--string-limit=4096"),
            *("--output", f"{target.folder}/loot", "--attach", str(target.pid)),
        ),
        watches=True,
    ),
    Attack(
        title="Python calls process_vm_readv",
        tool=sys.executable,
        command=lambda target: (
            *(sys.executable, "-I", str(_READER)),
            *(str(target.pid), str(target.address), str(_PAGE)),
        ),
    ),
    Attack(
        title="gcore writes a core file",
        tool="gcore",
        command=lambda target: ("gcore", "-o", f"{target.folder}/core", str(target.pid)),
    ),
    Attack(
        title="cat /proc/P/environ",
        tool="cat",
        command=lambda target: ("cat", f"/proc/{target.pid}/environ"),
    ),
)


def missing_tools() -> list[str]:
    """Return the programs that the demo needs and this machine lacks."""
    needed = ("gcc", "setpriv", *(attack.tool for attack in ATTACKS))
    return [tool for tool in dict.fromkeys(needed) if shutil.which(tool) is None]


def run(attack: Attack, wrapper: Wrapper, folder: Path) -> Attempt:
    """Let one attacker have a go at the wrapper; what it writes stays below `folder`."""
    folder.mkdir()
    target = Target(pid=wrapper.pid, address=wrapper.address, folder=folder)
    with (folder / "stdout").open("wb") as stdout:
        attacker = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *attack.command(target)],
            cwd=folder,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert attacker.stderr
        errors = Lines(attacker.stderr)
        try:
            if attack.watches:
                # It says that it has attached, or ends.
                errors.next(_ATTACK_S)
                wrapper.use_secret()
                attacker.terminate()
            errors.drain(_ATTACK_S)
            status = attacker.wait(_ATTACK_S)
        finally:
            if attacker.poll() is None:
                os.killpg(attacker.pid, signal.SIGKILL)  # its session, which is ours
                attacker.wait()
            errors.close()
    secret = wrapper.secret.encode()
    loot = any(secret in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return Attempt(pid=attacker.pid, status=status, got_secret=loot)
