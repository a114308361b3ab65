"""The agent that a session's tests share, and the victims that were there before it."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from agent.vectors import Mode
from tests.kernel.agent import Agent, protecting
from tests.kernel.build import WRAPPER_NAME, Programs
from tests.kernel.victim import Victim

_EXEMPT = ("attack", "env", "sh")


def agents(*modes: str) -> pytest.MarkDecorator:
    """Mark a test to run once with an agent in each of these modes; "off" is no agent at all."""
    return pytest.mark.parametrize("keeper", modes, indirect=True)


class Early:
    """A victim that was there first, with a descriptor of its memory that was opened in time."""

    def __init__(self, programs: Programs, undo: ExitStack) -> None:
        self.victim = undo.enter_context(Victim([programs.nobody()], execs=programs.nobody()))
        self.child = self.victim.ask("fork")
        self.memory = os.open(f"/proc/{self.victim.pid}/mem", os.O_RDWR)
        undo.callback(os.close, self.memory)


class Keeper:
    """Holds one agent, and starts another if a test has broken it."""

    early_processes = 3
    early_trees = 2

    def __init__(self, mode: Mode | None, programs: Programs, directory: Path) -> None:
        self.mode = mode
        self.socket = directory / "agent.sock"
        self._programs = programs
        self._undo = ExitStack()
        self._agent: Agent | None = None
        self.early = Early(programs, self._undo)
        self.early_by_name = self._undo.enter_context(Victim([programs.wrapper()]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._undo:
            if self._agent is not None:
                self._agent.kill()

    def agent(self) -> Agent:
        """Return the running agent."""
        assert self.mode is not None, "this test has no agent"
        if self._agent is None or not self._agent.alive:
            if self._agent is not None:
                self._agent.kill()
            self._agent = protecting(self.flags(self.mode))
        return self._agent

    def flags(self, mode: Mode) -> list[str]:
        """Return what the agent is told; one set serves every test."""
        return [
            *("--mode", mode.value, "--socket", str(self.socket)),
            *("--protect-exe", WRAPPER_NAME, "--protect-exe", str(self._programs.by_path)),
            *("--protect-pid", str(self.early.victim.pid)),
            *(flag for name in _EXEMPT for flag in ("--exempt-exe", str(self._programs.exempt(name)))),
        ]
