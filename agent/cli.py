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
from typing import Any

from agent import __version__
from agent.errors import AgentError, SelfTestError
from agent.options import OPTIONS
from agent.vectors import CATALOGUE, Action, Layer, Mode, outcome

_PROTECT_TIMEOUT_S = 10.0
_EXAMPLES = """\
examples:
  cloudtaser-ebpf run --standalone                       protect every process called cloudtaser-wrapper
  cloudtaser-ebpf run --standalone --protect-pid 4711    protect a process that runs already
  cloudtaser-ebpf protect -- vault-agent -config a.hcl   start a command as a protected wrapper
  cloudtaser-ebpf doctor                                 what this node can enforce, and what would change each "no"
  cloudtaser-ebpf selftest                               attack a canary through every vector
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

    protect = commands.add_parser("protect", help="run a command as a protected wrapper of the running agent")
    protect.add_argument("--socket", "--socket-path", dest="socket_path", metavar="PATH", help="the agent's socket")
    protect.add_argument("command", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")
    protect.set_defaults(run_command=_protect)

    for name, function, text in (
        ("doctor", _doctor, "what this node can enforce, vector by vector, and what would change each no"),
        ("selftest", _selftest, "attack a canary through every vector; 0 only if all effective ones held"),
    ):
        command = commands.add_parser(name, help=text)
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
        if option.key == "socket-path":
            names.append("--socket")
        text = f"{option.help} [{option.environment}]"
        if isinstance(option.default, bool):
            parser.add_argument(*names, dest=option.field, nargs="?", const=True, metavar="true|false", help=text)
        elif option.field in ("protect_pid", "protect_exe", "exempt_exe"):
            parser.add_argument(
                *names, dest=option.field, action="append", metavar=option.key.rpartition("-")[2].upper(), help=text
            )
        else:
            parser.add_argument(*names, dest=option.field, metavar="VALUE", help=text)


def _config(flags: Mapping[str, Any]) -> Any:
    from agent.config import load  # noqa: PLC0415

    return load(flags, os.environ, os.uname().nodename)


def _run(flags: Mapping[str, Any]) -> int:
    from agent import app  # noqa: PLC0415 - most commands do without the libraries it brings

    app.run(_config(flags))
    return 0


def _protect(flags: Mapping[str, Any]) -> int:
    from pathlib import Path  # noqa: PLC0415

    from agent import control  # noqa: PLC0415

    path = Path(flags["socket_path"]) if flags["socket_path"] else _config({}).socket_path
    control.request(path, "protect", _PROTECT_TIMEOUT_S)
    command = flags["command"]
    try:
        os.execvp(command[0], command)
    except OSError as err:
        message = f"{command[0]} cannot be run: {err.strerror}"
        raise AgentError(message) from err


def _doctor(flags: Mapping[str, Any]) -> int:
    from agent import app  # noqa: PLC0415

    config = _config(flags)
    plan = app.survey(config)
    rows = []
    for each in plan.coverage:
        action = config.action(each.vector)
        done = outcome(action, each.layer) if each.layer is not None else None
        weaker = each.reason
        if done is not None and done < action:
            weaker = "a tracepoint cannot deny: a better layer, or mode strict, stops it"
        rows.append(
            {
                "vector": each.vector.id,
                "layer": each.layer.name.lower() if each.layer is not None else None,
                "asked": action.name.lower(),
                "enforced": done.name.lower() if done is not None else None,
                "open": done is None or (done < action),
                "reason": weaker,
            }
        )
    better = {layer.name.lower(): why for layer, why in plan.weaker.items()}
    if flags["json"]:
        print(json.dumps({"layer": plan.layer.name.lower(), "vectors": rows, "better_layers": better}, indent=2))
        return 0
    print(f"layer: {plan.layer.name.lower()}")
    for name, why in better.items():
        print(f"  {name} is not used: {why}")
    _table(
        ("VECTOR", "LAYER", "ASKED", "ENFORCED", ""),
        [
            (
                row["vector"],
                row["layer"] or "none",
                row["asked"],
                row["enforced"] or "open",
                f"open: {row['reason']}" if row["open"] else "",
            )
            for row in rows
        ],
    )
    return 0


def _selftest(flags: Mapping[str, Any]) -> int:
    from agent import app  # noqa: PLC0415
    from agent.selftest import Canary  # noqa: PLC0415

    config = _config({**flags, "protect_exe": None, "protect_pid": None})
    with Canary() as canary:
        plan = app.survey(config)
        with app.armed(config, plan) as programs:
            trials = app.try_all(programs, canary)
    failed = app.not_held(config, trials)
    # A deny that the layer cannot do is open, not broken: doctor says so.
    broken = [
        trial for trial in failed if outcome(config.action(trial.vector), plan.layer) >= config.action(trial.vector)
    ]
    if flags["json"]:
        rows = [
            {"vector": t.vector.id, "result": t.result.value, "counted": t.counted, "held": t.held} for t in trials
        ]
        print(json.dumps({"layer": plan.layer.name.lower(), "trials": rows, "held": not broken}, indent=2))
    else:
        _table(
            ("VECTOR", "ASKED", "RESULT", ""),
            [
                (
                    t.vector.id,
                    config.action(t.vector).name.lower(),
                    t.result.value,
                    "held" if t.held else ("BROKEN" if t in broken else "open with this layer and mode"),
                )
                for t in trials
            ],
        )
    return SelfTestError.exit_code if broken else 0


def _vectors(flags: Mapping[str, Any]) -> int:
    if flags["json"]:
        print(
            json.dumps(
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
                ],
                indent=2,
            )
        )
        return 0
    _table(
        ("VECTOR", "ENFORCE", "STRICT", "THE ATTEMPT"),
        [
            (v.id, v.action(Mode.ENFORCE).name.lower(), v.action(Mode.STRICT).name.lower(), v.attempt)
            for v in CATALOGUE
        ],
    )
    return 0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
