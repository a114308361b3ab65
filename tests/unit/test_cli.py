"""The command line as a person meets it: a process, its two outputs and its exit code."""

import json
import os
import subprocess
import sys

import pytest

from agent import __version__
from agent.options import OPTIONS
from agent.vectors import CATALOGUE, Layer, Mode

COMMANDS = ("run", "protect", "doctor", "selftest", "vectors")


@pytest.fixture
def cli(tmp_path):
    """Run the command in an environment that says nothing, unless a test does."""

    def cli(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "agent", *arguments],
            env={"PATH": os.environ["PATH"], "COLUMNS": "100"} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return cli


def test_the_catalogue_is_a_table_for_people(cli):
    done = cli("vectors")

    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0].split() == ["VECTOR", "ENFORCE", "STRICT", "THE", "ATTEMPT"]
    assert [line.split(maxsplit=3) for line in lines[1:]] == [
        [
            vector.id,
            vector.action(Mode.ENFORCE).name.lower(),
            vector.action(Mode.STRICT).name.lower(),
            vector.attempt,
        ]
        for vector in CATALOGUE
    ]
    starts = {line.index(vector.attempt) for line, vector in zip(lines[1:], CATALOGUE, strict=True)}
    assert starts == {lines[0].index("THE ATTEMPT")}
    assert not any(line.endswith(" ") for line in lines)


def test_the_catalogue_is_json_for_programs(cli):
    done = cli("vectors", "--json")

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [
        {
            "id": vector.id,
            "group": vector.group.value,
            "attempt": vector.attempt,
            "targeted": vector.targeted,
            "actions": {mode.value: vector.action(mode).name.lower() for mode in Mode},
            "hooks": {layer.name.lower(): list(vector.hooks[layer]) for layer in Layer},
        }
        for vector in CATALOGUE
    ]


def test_help_names_the_commands_and_shows_examples(cli):
    done = cli("--help")

    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout
    assert "examples:\n" in done.stdout


@pytest.mark.parametrize("command", ["run", "doctor", "selftest"])
def test_help_of_a_command_names_every_option_and_its_variable(cli, command):
    done = cli(command, "--help")

    assert done.returncode == 0
    for option in OPTIONS:
        assert f"--{option.key}" in done.stdout
        assert f"[{option.environment}]" in done.stdout


def test_the_version_is_told(cli):
    done = cli("--version")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"cloudtaser-ebpf {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required: COMMAND"),
        (["guard"], "invalid choice: 'guard'"),
        (["vectors", "--yaml"], "unrecognized arguments: --yaml"),
        (["vectors", "now"], "unrecognized arguments: now"),
        (["protect"], "required: COMMAND"),
        (["protect", "--"], "required: COMMAND"),
        (["run", "--mod", "x"], "--mod"),
    ],
    ids=" ".join,
)
def test_a_mistake_of_usage_is_2(cli, arguments, told):
    done = cli(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["run", "doctor", "selftest"])
@pytest.mark.parametrize(
    ("arguments", "environment", "line"),
    [
        (
            ["--mode", "enforced"],
            {},
            "--mode: must be one of detect, enforce, strict, not 'enforced', did you mean 'enforce'?",
        ),
        (
            [],
            {"ENFORCE_MODE": "Strict"},
            "ENFORCE_MODE: must be one of detect, enforce, strict, not 'Strict'",
        ),
        ([], {"CLOUDTASER_EBPF_LAYR": "lsm"}, "CLOUDTASER_EBPF_LAYR: unknown variable"),
        (["--config", "/none.yaml"], {}, "/none.yaml: cannot be read: No such file or directory"),
        (
            ["--exempt-exe", "a/b", "--node", "a b"],
            {},
            "--exempt-exe: must be the absolute path of a file, not 'a/b'; --node: must be a host name",
        ),
        (
            ["--vectors", "proc-mum=kill"],
            {},
            "--vectors: unknown vector 'proc-mum', did you mean 'proc-mem'?",
        ),
    ],
    ids=["mode", "variable", "name", "file", "two mistakes", "vector"],
)
def test_a_mistake_of_the_configuration_is_2_and_one_line(cli, command, arguments, environment, line):
    done = cli(command, *arguments, **environment)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"cloudtaser-ebpf: {line}")
    assert done.stderr.count("\n") == 1


def test_to_protect_takes_an_agent(cli, tmp_path):
    path = tmp_path / "agent.sock"

    done = cli("protect", "--socket-path", str(path), "--", "touch", str(tmp_path / "started"))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"cloudtaser-ebpf: no agent is running at {path}: start it with `cloudtaser-ebpf run`\n"
    )
    assert not (tmp_path / "started").exists()


# As nobody from the first look on, whoever runs the tests.
AS_NOBODY = """
import os, sys
from agent import app, cli, doctor
if os.geteuid() == 0:
    os.seteuid(65534)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def as_nobody():
    def as_nobody(*arguments):
        return subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return as_nobody


@pytest.mark.parametrize("command", ["doctor", "selftest"])
def test_without_root_a_node_enforces_nothing_and_says_what_to_change(as_nobody, command):
    done = as_nobody(command)

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("cloudtaser-ebpf: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["doctor", "selftest"])
def test_a_mistake_about_what_to_protect_is_one_for_every_command(as_nobody, command):
    done = as_nobody(command, "--protect-pid", "0", "--protect-exe", "a/b")

    assert done.returncode == 2
    assert done.stderr.startswith(
        "cloudtaser-ebpf: --protect-exe: must be the absolute path of a file, not 'a/b'; --protect-pid: must"
    )
