"""How the benchmark concludes from what it timed; the timing itself needs a kernel."""

import json
from dataclasses import asdict, replace

import pytest

from bench import aims, calls, guests, memory, pods, report, start
from bench.calls import CASES, GUARDING, IDLE, OFF, Visit
from demo.agent_process import Start
from demo.lines import Line

SMAPS = """\
55d0c0000000-7ffd00000000 ---p 00000000 00:00 0                          [rollup]
Rss:               34624 kB
Pss:               23873 kB
Pss_Anon:          21696 kB
Anonymous:         21696 kB
"""
MEMORY = memory.Memory(resident_bytes=34 << 20, anonymous_bytes=21 << 20, proportional_bytes=23 << 20)


def visit(condition, cost, *, disturbed=False):
    return Visit(condition=condition, costs={case.name: cost for case in CASES}, disturbed=disturbed)


@pytest.fixture
def costs():
    # The machine gets slower all the time, by 10 a visit without an agent.
    return calls.summarise(
        "lsm",
        [
            visit(OFF, 100),
            visit(IDLE, 106),
            visit(GUARDING, 125),
            visit(OFF, 110, disturbed=True),
            visit(IDLE, 115),
            visit(GUARDING, 145),
            visit(OFF, 120),
        ],
    )


@pytest.fixture
def starts():
    return start.Starts(
        ready=(0.8, 0.9, 1.4), stopped=(0.1, 0.2, 0.3), phases=None, agent=MEMORY, with_children=MEMORY
    )


@pytest.fixture
def on_pods():
    return pods.OnPods(
        pods=250,
        containers=2,
        ready=1.5,
        agent=replace(MEMORY, resident_bytes=61 << 20),
        with_children=MEMORY,
        idle=10,
        processor=0.0123,
    )


@pytest.fixture
def figures(costs, starts, on_pods):
    boot = guests.GuestCosts(kernel="6.1", append="lsm=bpf", seconds=1.0, costs=(costs,))
    return report.Figures(
        starts=starts,
        on_pods=on_pods,
        native=costs,
        guests=(boot,),
        aims=aims.judge(starts, on_pods, costs, (boot,)),
        unmeasured=("fmod_ret: not measured",),
    )


def test_a_visit_is_compared_with_those_around_it(costs):
    first = costs.costs[0]
    assert first.off == 110
    assert (first.idle.difference, first.idle.lower, first.idle.upper) == (0.5, 0.25, 0.75)
    assert (first.guarding.difference, first.guarding.lower, first.guarding.upper) == (25, 22.5, 27.5)
    assert first.guarding.ratio == pytest.approx((125 / 105 + 145 / 115) / 2)
    assert (costs.visits, costs.disturbed) == (7, 1)


def test_costs_survive_the_way_out_of_a_guest(costs):
    assert calls.from_json(json.loads(json.dumps(asdict(costs)))) == costs


def test_a_start_is_split_by_its_log():
    log = (
        Line(text="layer lsm is not used: why", at=100.9),
        Line(text="ready: metrics on http://127.0.0.1:1", at=101.0),
        Line(text="started in 0.80 s", at=101.0),
    )
    phases = start.phases_of(Start(began=100.0, ready=101.0, log=log))
    assert phases is not None
    assert [phases.imports, phases.attach, phases.selftest] == pytest.approx([0.2, 0.7, 0.1])
    assert start.phases_of(Start(began=100.0, ready=101.0, log=log[:1])) is None


def test_memory_is_the_kernels_account(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "smaps_rollup").write_text(SMAPS)
    read = memory.of_process(7, tmp_path)
    assert (read.resident_bytes, read.anonymous_bytes, read.proportional_bytes) == (
        34624 << 10,
        21696 << 10,
        23873 << 10,
    )
    assert memory.total([read, read]).proportional_bytes == 2 * 23873 << 10


def test_the_aims_are_judged_by_the_figures(figures):
    reached = {aim.aim: aim.reached for aim in figures.aims}
    assert reached["ready within 1 s"]
    assert not reached["under 60 MiB resident, Kubernetes, 250 pods"]
    assert reached["under 10 ns added to getppid, lsm, nothing protected"]
    assert not reached["under 10 ns added to getppid, lsm, a tree protected"]
    assert not reached["nothing measurable on getppid, lsm, a tree protected"]


def test_the_report_tells_all_and_what_is_missing(figures):
    text = "\n".join(report.as_text(figures))
    assert "0.90 s (0.80 to 1.40)" in text
    assert "KUBERNETES, 250 pods of 2 containers" in text
    assert "1.2% of a processor, over 10 s" in text
    assert "1 of 7 visits were disturbed" in text
    assert "fmod_ret: not measured" in text
    assert report.as_json(figures)["schema"] == report.SCHEMA
    json.dumps(report.as_json(figures))
