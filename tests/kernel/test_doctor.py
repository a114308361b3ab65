"""What `doctor` says about this machine, to people and to programs."""

import json
import os
import subprocess
import sys

import pytest

from agent.options import OPTIONS
from agent.vectors import BY_ID, CATALOGUE, Action, Layer, Mode, Outcome

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="looking at a node takes root")


def doctor(*arguments):
    ours = {option.environment for option in OPTIONS}
    return subprocess.run(
        [sys.executable, "-m", "agent", "doctor", *arguments],
        env={name: value for name, value in os.environ.items() if name not in ours},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def told():
    return json.loads(doctor("--json").stdout)


def test_programs_are_told_about_every_vector(told):
    layers = {layer.name.lower() for layer in Layer}

    assert told.keys() == {"layer", "vectors", "better_layers"}
    assert [each["vector"] for each in told["vectors"]] == [vector.id for vector in CATALOGUE]
    assert told["layer"] in layers
    assert {each["layer"] for each in told["vectors"]} <= {told["layer"], None}
    assert told["better_layers"].keys() == {
        layer.name.lower() for layer in Layer if layer < Layer[told["layer"].upper()]
    }
    assert all(told["better_layers"].values())


def test_less_than_asked_is_open_and_has_a_reason(told):
    for each in told["vectors"]:
        asked = Action[each["asked"].upper()]
        enforced = each["enforced"] and Outcome[each["enforced"].upper()]
        assert asked is BY_ID[each["vector"]].action(Mode.ENFORCE)
        assert each["open"] is (enforced is None or enforced < asked)
        assert bool(each["reason"]) is each["open"]


def test_people_are_told_the_same(told):
    done = doctor()

    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0] == f"layer: {told['layer']}"
    better = [f"  {layer} is not used: {why}" for layer, why in told["better_layers"].items()]
    assert lines[1 : 1 + len(better)] == better
    assert lines[1 + len(better)].split() == ["VECTOR", "LAYER", "ASKED", "ENFORCED"]
    assert [line.split(maxsplit=4) for line in lines[2 + len(better) :]] == [
        [
            each["vector"],
            each["layer"] or "none",
            each["asked"],
            each["enforced"] or "nothing",
            *([f"open: {each['reason']}"] if each["open"] else []),
        ]
        for each in told["vectors"]
    ]


def test_a_layer_that_is_asked_for_is_used_or_refused_with_a_reason(told):
    for layer, why in told["better_layers"].items():
        done = doctor("--layer", layer)

        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == f"cloudtaser-ebpf: layer {layer} cannot be used on this node: {why}\n"
