"""The C programs of tests/attacks, built for both ABIs, under the names that the tests give them."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "attacks"

# What the agent is told to protect: a name that nothing else has, not even in a session beside this one,
# of at most 15 characters, all that the kernel keeps of a task's name.
WRAPPER_NAME = f"ct-wrap-{os.getpid()}"

_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-D_FILE_OFFSET_BITS=64")
_PROGRAMS = {
    "attack": ("attack", "doors", "files", "memory", "pair", "ring", "traceme"),
    "victim": ("victim", "relatives"),
    "reborn": ("reborn",),
    "race": ("race",),
}
ABIS = ("64", "32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The programs by what they are for; `exempt` and `by_path` hold copies with inodes of their own."""

    directory: Path

    def attack(self, abi: str = "64") -> Path:
        """The attacker."""
        return self.directory / abi / "attack"

    def wrapper(self, abi: str = "64") -> Path:
        """A victim that the agent recognises by its name."""
        return self.directory / abi / WRAPPER_NAME

    def nobody(self, abi: str = "64") -> Path:
        """The same program under a name that says nothing to the agent."""
        return self.directory / abi / "ct-test-nobody"

    @property
    def by_path(self) -> Path:
        """The same program, which the agent knows by its path."""
        return self.directory / "by-path" / "program"

    @property
    def reborn(self) -> Path:
        """Runs a command under a given pid."""
        return self.directory / "64" / "reborn"

    @property
    def race(self) -> Path:
        """Guesses the pids of processes that do not exist yet."""
        return self.directory / "64" / "race"

    @property
    def race_as_wrapper(self) -> Path:
        """The same program under the wrapper's name."""
        return self.directory / "race" / WRAPPER_NAME

    def exempt(self, name: str) -> Path:
        """A program that the agent exempts: attack, env or sh."""
        return self.directory / "exempt" / name


def compile_all(directory: Path) -> None:
    """Compile every program for both ABIs, each into a folder below `directory`."""
    for abi in ABIS:
        (directory / abi).mkdir(parents=True)
        for name, sources in _PROGRAMS.items():
            files = [SOURCES / f"{source}.c" for source in sources]
            command: list[str | Path] = ["gcc", *_FLAGS, f"-m{abi}", "-o", directory / abi / name, *files]
            subprocess.run(command, check=True, timeout=300)


def build(directory: Path) -> Programs:
    """Put everything below `directory`: compiled now, or copied from CLOUDTASER_TEST_COMPILED."""
    programs = Programs(directory=directory)
    if compiled := os.environ.get("CLOUDTASER_TEST_COMPILED"):
        shutil.copytree(compiled, directory, dirs_exist_ok=True)
    else:
        compile_all(directory)
    for abi in ABIS:
        for copy in (programs.wrapper(abi), programs.nobody(abi)):
            shutil.copy(directory / abi / "victim", copy)
    for copy, original in (
        (programs.by_path, programs.nobody()),
        (programs.race_as_wrapper, programs.race),
        (programs.exempt("attack"), programs.attack()),
        (programs.exempt("env"), Path("/usr/bin/env")),
        (programs.exempt("sh"), Path("/bin/sh").resolve()),
    ):
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(original, copy)
    return programs
