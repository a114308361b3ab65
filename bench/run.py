"""Measures the agent: start, memory, and what it adds to system calls, per layer.

The tracepoint layer is timed on this machine. The other layers are measured as instructions per call, in
guests; --quick leaves them out. Exit codes: 0 measured, whatever the figures, 2 it cannot run here.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import NoReturn

# Run as a script, its own folder is first on the path; its modules are found from the checkout.
ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from bench import aims, calls, guests, pods, programs, report, start  # noqa: E402
from demo.agent_process import AgentProcessError  # noqa: E402
from tests.vm.guest import GuestError  # noqa: E402
from tests.vm.kernels import KernelError  # noqa: E402

# Every machine whose kernel has BTF can be measured on this layer, and it is the one that costs.
NATIVE_LAYER = "tracepoint"
WRITTEN_TO = ROOT / "docs" / "performance.json"

_FULL = calls.Effort(cycles=7, rounds=40, patience_s=120)
_QUICK = calls.Effort(cycles=2, rounds=15, patience_s=5)
_STARTS, _QUICK_STARTS = 9, 3
_IDLE_S, _QUICK_IDLE_S = 10.0, 3.0


class CannotRunError(Exception):
    """This machine lacks something; the message is one line that says what."""


def main() -> int:
    """Measure, print, write what is asked for, and return the exit code."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _check(arguments)
        figures = _measure(quick=arguments.quick)
    except (
        AgentProcessError,
        CannotRunError,
        OSError,
        programs.ProgramError,
        subprocess.SubprocessError,
    ) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted; everything it started is gone\n")
        return 130
    for line in report.as_text(figures):
        print(line)
    written = [path for path in (arguments.json, WRITTEN_TO if arguments.write else None) if path]
    for path in written:
        path.write_text(json.dumps(report.as_json(figures), indent=2) + "\n")
        _tell(f"written to {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/run.py", description="Measure the agent.")
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer rounds, and no guests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    parser.add_argument(
        "--write", action="store_true", help=f"write them to {WRITTEN_TO.relative_to(ROOT)} too"
    )
    return parser


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _check(arguments: argparse.Namespace) -> None:
    if arguments.quick and arguments.write:
        raise CannotRunError("--write is for figures of a full run: leave out --quick")
    if os.geteuid():
        raise CannotRunError("loading BPF programs needs root: run it as root")
    if missing := [tool for tool in ("gcc", "bpftool", "setpriv") if shutil.which(tool) is None]:
        raise CannotRunError(f"{', '.join(missing)} not installed: run make setup")


def _measure(*, quick: bool) -> report.Figures:
    with tempfile.TemporaryDirectory(prefix="cloudtaser-bench-") as name:
        folder = Path(name)
        starts = start.measure(_QUICK_STARTS if quick else _STARTS, _tell)
        on_pods = pods.measure(_QUICK_IDLE_S if quick else _IDLE_S, _tell)
        native = calls.measure(NATIVE_LAYER, _QUICK if quick else _FULL, programs.build(folder), _tell)
        measured: list[guests.GuestCosts] = []
        unmeasured: list[str] = ["lsm, fmod_ret: not measured with --quick"] if quick else []
        for number, boot in enumerate(() if quick else guests.BOOTS):
            try:
                measured.append(guests.measure(boot, folder / f"guest-{number}", _tell))
            except (GuestError, guests.GuestFailedError, KernelError) as error:
                layers = ", ".join(boot.layers)
                unmeasured.append(f"{layers} on {boot.release}: not measured: {error}")
    return report.Figures(
        starts=starts,
        on_pods=on_pods,
        native=native,
        guests=tuple(measured),
        aims=aims.judge(starts, on_pods, native, tuple(measured)),
        unmeasured=tuple(unmeasured),
    )


def _tell(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
