"""Shows what the agent is for: real attackers go for a sample wrapper's secret, without it and with it.

Exit codes: 0 every attack was stopped or is one that doctor calls open on this node, 1 something leaked or
the wrapper did not survive, 2 the demo cannot run here, 130 Ctrl-C.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

# Run as a script, its own folder is first on the path; its modules are found from the checkout.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from demo import attacks, report, scenes, wrapper  # noqa: E402
from demo.agent_process import AgentProcess, AgentProcessError, doctor  # noqa: E402


class CannotRunError(Exception):
    """This machine lacks something; the message is one line that says what."""


def main() -> int:
    """Run the demo and return its exit code."""
    arguments = _parser().parse_args()
    settings = ("--mode", arguments.mode, "--layer", arguments.layer)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        _check()
        return _play(settings)
    except (
        AgentProcessError,
        wrapper.WrapperError,
        CannotRunError,
        OSError,
        subprocess.SubprocessError,
    ) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted; everything it started is gone\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demo/run.py", description="Attack a sample wrapper, without and with the agent."
    )
    parser.add_argument(
        "--mode",
        choices=("enforce", "strict"),
        default="enforce",
        help="the agent's preset (default: %(default)s)",
    )
    parser.add_argument("--layer", default="auto", help="the agent's layer (default: the best of this node)")
    return parser


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _check() -> None:
    if os.geteuid():
        raise CannotRunError("attacking other processes and loading BPF programs needs root: run it as root")
    if missing := attacks.missing_tools():
        raise CannotRunError(f"{', '.join(missing)} not installed: run make setup")


def _play(settings: tuple[str, ...]) -> int:
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="cloudtaser-demo-")))
        report.say(
            "A sample wrapper holds a secret in its memory and its environment. Attackers, all of them "
            "root, go for it: first without an agent, then with one."
        )
        print()
        unknown = wrapper.build(folder, wrapper.UNKNOWN_NAME)
        off = scenes.without_agent(unknown, folder, lambda title: _progress("off", title))
        agent = undo.enter_context(AgentProcess(*settings))
        seconds = agent.start().seconds
        known = wrapper.build(folder, wrapper.NAME)
        on = scenes.with_agent(known, agent, folder, lambda title: _progress("on", title))
        _progress("", "")
        verdicts = doctor(settings)
        report.table(off, on, verdicts)
        report.wrapper_fate(off, on)
        report.say(f"The agent was ready after {seconds:.1f} s.")
        report.next_steps(on)
        leaked = report.leaks(on, verdicts)
        if leaked:
            titles = ", ".join(trial.attack.title for trial in leaked)
            print()
            report.say(f"LEAKED, although doctor does not call it open: {titles}.")
        return 1 if leaked or not all(trial.survived for trial in (*off, *on)) else 0


def _progress(agent: str, title: str) -> None:
    # A line that is replaced by the next; of no use where it would be kept.
    if sys.stdout.isatty():
        text = f"agent {agent}: {title} ..." if title else ""
        print(f"\r\x1b[K{text}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
