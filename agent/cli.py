"""The commands: what a person types, and what they get back.

Exit codes: 0 done, 1 failed while running, 2 bad configuration or usage, 3 this node cannot enforce what is
asked, 4 the self-test got through.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.errors import AgentError, SelfTestError
from agent.options import OPTIONS
from agent.vectors import CATALOGUE, Action, Mode

if TYPE_CHECKING:
    from agent.config import Config
    from agent.selftest import Trial

# Most commands do without the libraries that others bring, so each imports what it needs.
# ruff: noqa: PLC0415

_PROTECT_TIMEOUT_S = 10.0
_LISTS = frozenset({"protect_exe", "protect_pid", "exempt_exe", "namespaces"})
_EXAMPLES = """\
examples:
  cloudtaser-ebpf run --standalone                      protect what is called cloudtaser-wrapper
  cloudtaser-ebpf run --standalone --protect-pid 4711   protect a process that runs already
  cloudtaser-ebpf protect -- vault-agent -config a.hcl  start a command as a protected wrapper
  cloudtaser-ebpf doctor                                what this node can enforce, and why not more
  cloudtaser-ebpf selftest                              attack a canary through every vector
"""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; an `AgentError` is one line on standard error."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    flags = vars(_parser().parse_args(arguments))
    command: Callable[[Mapping[str, Any]], int] = flags.pop("run_command")
    try:
        return command(flags)
    except AgentError as err:
        sys.stderr.write(f"cloudtaser-ebpf: {err}\n")
        return err.exit_code
    except BrokenPipeError:
        # Whoever read the output has enough, as in `doctor | head`; the exit's own flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudtaser-ebpf",
        description="Keeps the secrets in a process's memory where they belong.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cloudtaser-ebpf {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="load the programs and guard this node until SIGTERM")
    _add_options(run)
    run.set_defaults(run_command=_run)

    protect = commands.add_parser("protect", help="run a command as a protected wrapper")
    protect.add_argument("--socket-path", "--socket", metavar="PATH", help="the running agent's socket")
    protect.add_argument("command", nargs="+", metavar="COMMAND", help="the command, after --")
    protect.set_defaults(run_command=_protect)

    doctor = commands.add_parser("doctor", help="what this node can enforce, and what would change each no")
    selftest = commands.add_parser("selftest", help="attack a canary; 0 only if all effective vectors held")
    for command, function in ((doctor, _doctor), (selftest, _selftest)):
        _add_options(command)
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run_command=function)

    vectors = commands.add_parser("vectors", help="the catalogue of what is watched")
    vectors.add_argument("--json", action="store_true", help="print JSON")
    vectors.set_defaults(run_command=_vectors)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a YAML file with any of these settings")
    for option in OPTIONS:
        names = [f"--{option.key}"]
        if option.field == "socket_path":
            names.append("--socket")
        how: dict[str, Any] = {"metavar": option.key.rpartition("-")[2].upper()}
        if isinstance(option.default, bool):
            how = {"nargs": "?", "const": True, "metavar": "true|false"}
        elif option.field in _LISTS:
            how["action"] = "append"
        parser.add_argument(*names, dest=option.field, help=f"{option.help} [{option.environment}]", **how)


def _config(flags: Mapping[str, Any]) -> "Config":
    from agent.config import load

    return load(flags, os.environ, os.uname().nodename)


def _run(flags: Mapping[str, Any]) -> int:
    from agent import app
    from agent.config import file_path
    from agent.reload import ConfigFile

    config = _config(flags)
    app.run(config, ConfigFile(file_path(flags, os.environ), lambda: _config(flags), config))
    return 0


def _protect(flags: Mapping[str, Any]) -> int:
    from agent import control

    path = _config({"socket_path": flags["socket_path"]}).socket_path
    control.request(path, "protect", _PROTECT_TIMEOUT_S)
    command = flags["command"]
    try:
        os.execvp(command[0], command)
    except OSError as err:
        message = f"{command[0]} cannot be run: {err.strerror}"
        raise AgentError(message) from err


def _doctor(flags: Mapping[str, Any]) -> int:
    from agent import doctor
    from agent.armed import survey

    config = _config(flags)
    plan = survey(config)
    findings = doctor.examine(config, plan)
    if flags["json"]:
        rows = [
            {
                "vector": finding.vector.id,
                "layer": finding.layer.name.lower() if finding.layer is not None else None,
                "asked": finding.asked.name.lower(),
                "enforced": finding.enforced.name.lower() if finding.enforced is not None else None,
                "open": finding.open,
                "reason": finding.reason,
            }
            for finding in findings
        ]
        better = {layer.name.lower(): why for layer, why in plan.weaker.items()}
        _print_json({"layer": plan.layer.name.lower(), "vectors": rows, "better_layers": better})
        return 0
    _print(f"layer: {plan.layer.name.lower()}")
    for layer, why in plan.weaker.items():
        _print(f"  {layer.name.lower()} is not used: {why}")
    _table(
        ("VECTOR", "LAYER", "ASKED", "ENFORCED", ""),
        [
            (
                finding.vector.id,
                finding.layer.name.lower() if finding.layer is not None else "none",
                finding.asked.name.lower(),
                finding.enforced.name.lower() if finding.enforced is not None else "nothing",
                f"open: {finding.reason}" if finding.open else "",
            )
            for finding in findings
        ],
    )
    return 0


def _selftest(flags: Mapping[str, Any]) -> int:
    from agent import doctor
    from agent.armed import armed, survey, try_all
    from agent.selftest import Canary

    # On its own it protects nothing but its canary.
    config = replace(_config(flags), protect_exe=(), protect_pid=())
    with Canary() as canary:
        plan = survey(config)
        with armed(config, plan) as programs:
            trials = try_all(programs, canary)
    broken = doctor.broken(config, plan, trials)
    if flags["json"]:
        rows = [
            {"vector": trial.vector.id, "result": trial.result.value, "held": trial.held} for trial in trials
        ]
        _print_json({"layer": plan.layer.name.lower(), "trials": rows, "held": not broken})
    else:
        rows_of_text = []
        for trial in trials:
            asked = config.action(trial.vector)
            rows_of_text.append(
                (trial.vector.id, asked.name.lower(), trial.result.value, _verdict(trial, asked, broken))
            )
        _table(("VECTOR", "ASKED", "RESULT", ""), rows_of_text)
    return SelfTestError.exit_code if broken else 0


def _verdict(trial: "Trial", asked: Action, broken: Sequence["Trial"]) -> str:
    if trial.held:
        return "held"
    if trial in broken:
        return "BROKEN"
    return "only detected, as asked" if asked is Action.DETECT else "open: see doctor"


def _vectors(flags: Mapping[str, Any]) -> int:
    if flags["json"]:
        _print_json(
            [
                {
                    "id": vector.id,
                    "group": vector.group,
                    "attempt": vector.attempt,
                    "targeted": vector.targeted,
                    "actions": {mode.value: vector.action(mode).name.lower() for mode in Mode},
                    "hooks": {layer.name.lower(): list(hooks) for layer, hooks in vector.hooks.items()},
                }
                for vector in CATALOGUE
            ]
        )
        return 0
    _table(
        ("VECTOR", "ENFORCE", "STRICT", "THE ATTEMPT"),
        [
            (
                vector.id,
                vector.action(Mode.ENFORCE).name.lower(),
                vector.action(Mode.STRICT).name.lower(),
                vector.attempt,
            )
            for vector in CATALOGUE
        ],
    )
    return 0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        _print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_json(value: object) -> None:
    _print(json.dumps(value, indent=2))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
