import json

import pytest

from tests import matrix

ADVISED = "lsm=lockdown,capability,bpf lockdown=confidentiality"


def cell(*, attempts=100, killed=0, denied=0, detected=0, leaked=0, **what):
    counts = {
        "attempts": attempts,
        "killed": killed,
        "denied": denied,
        "detected": detected,
        "leaked": leaked,
    }
    return {
        "vector": "proc-mem",
        "way": "read",
        "mode": "enforce",
        "abi": "64",
        "door": "plain",
        **what,
        **counts,
    }


@pytest.fixture
def result(tmp_path):
    made = iter(range(100))

    def write(*cells, kernel="6.1.0-56-amd64", boot=ADVISED, layer="lsm"):
        path = tmp_path / f"result-{next(made)}.json"
        path.write_text(json.dumps({"kernel": kernel, "boot": boot, "layer": layer, "cells": cells}))
        return str(path)

    return write


@pytest.fixture
def docs(tmp_path):
    return tmp_path / "docs"


@pytest.fixture
def run(docs):
    def call(*arguments):
        return matrix.main(arguments, docs=docs)

    return call


@pytest.fixture
def committed(run, result):
    def commit(*cells, **where):
        assert run("update", result(*cells, **where)) == 0

    return commit


def test_same_result_passes_the_check(run, result, committed):
    committed(cell(killed=100))

    assert run("check", result(cell(killed=100))) == 0


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (cell(killed=100), cell(killed=99, leaked=1), "leaked 0 of 100 before and 1 of 100 now"),
        (cell(killed=100), cell(killed=99), "killed 100 of 100, denied 0 of 100 before; killed 99 of 100"),
        (
            cell(denied=100),
            cell(denied=50),
            "denied 100 of 100 before; killed 0 of 100, denied 50",
        ),
        (cell(detected=100, leaked=100), cell(detected=98, leaked=100), "detected 100 of 100 before, 98 of"),
        (cell(killed=100), cell(killed=100, door="thread"), "was not tested"),
    ],
)
def test_anything_worse_is_named_with_its_cell(run, result, committed, capsys, *, before, now, told):
    committed(before)

    assert run("check", result(now)) == 1

    out = capsys.readouterr().out
    assert f"6.1 ({ADVISED}) lsm: proc-mem read enforce 64 plain: " in out
    assert told in out


@pytest.mark.parametrize(
    ("before", "now"),
    [
        pytest.param(cell(killed=98, leaked=2), cell(killed=100), id="better"),
        pytest.param(cell(killed=100), cell(attempts=7, killed=7), id="fewer attempts"),
        pytest.param(cell(attempts=10, killed=9, leaked=1), cell(killed=90, leaked=10), id="same rate"),
        pytest.param(cell(killed=100), cell(denied=100), id="stopped in another way"),
        pytest.param(cell(detected=100, leaked=100), cell(killed=100), id="stopped instead of detected"),
    ],
)
def test_nothing_worse_passes_the_check(run, result, committed, before, now):
    committed(before)

    assert run("check", result(now)) == 0


def test_kernel_is_known_by_major_and_minor(run, result, committed, docs):
    committed(cell(killed=100), kernel="6.12.117+deb13-amd64")

    assert run("check", result(cell(killed=100), kernel="6.12.200+deb13-amd64")) == 0
    assert '"kernel": "6.12"' in (docs / "enforcement-matrix.json").read_text()


@pytest.mark.parametrize(
    "where", [{"kernel": "5.10.1"}, {"boot": "lsm=lockdown,capability"}, {"layer": "fmod_ret"}]
)
def test_another_kernel_boot_or_layer_does_not_stand_in(run, result, committed, where):
    committed(cell(killed=100))

    assert run("check", result(cell(killed=100), **where)) == 1


def test_what_the_newest_kernel_stops_its_follower_must_stop(run, result, committed, capsys):
    committed(cell(killed=100), kernel="5.10.0")
    committed(cell(killed=100), kernel="7.2.13+deb14-amd64")

    old = result(cell(killed=100), kernel="5.10.0")
    assert run("check", old, result(cell(killed=100), kernel="7.4.0")) == 0
    assert run("check", old, result(cell(leaked=100), kernel="7.4.0")) == 1
    assert "7.4" in capsys.readouterr().out


def test_a_known_hole_promises_nothing_but_to_be_measured(run, result, committed):
    committed(cell(killed=100, leaked=15))

    assert run("check", result(cell(killed=90, leaked=46))) == 0
    assert run("check", result(cell(killed=100, vector="proc-maps"))) == 1


def test_new_cells_pass_the_check_and_are_counted(run, result, capsys):
    assert run("check", result(cell(killed=100))) == 0

    assert "1 new" in capsys.readouterr().out


def test_update_does_not_depend_on_the_order_of_cells_or_files(run, result, docs):
    one, two = cell(killed=100), cell(killed=100, vector="ptrace")
    run("update", result(one, two), result(one, kernel="5.10.1"))
    before = (docs / "enforcement-matrix.json").read_text()

    run("update", "--replace", result(one, kernel="5.10.1"), result(two, one))

    assert (docs / "enforcement-matrix.json").read_text() == before
    assert before.index("5.10") < before.index("6.1")


def test_update_renews_its_own_rows_and_keeps_others(run, result, committed, docs):
    committed(cell(killed=100), cell(killed=100, vector="gone"))
    committed(cell(denied=100), kernel="5.10.9")

    run("update", result(cell(denied=100)))

    text = (docs / "enforcement-matrix.json").read_text()
    rows = json.loads(text)["rows"]
    assert [(row["kernel"], len(row["cells"])) for row in rows] == [("5.10", 1), ("6.1", 1)]
    assert "gone" not in text


def test_update_can_forget_what_the_run_does_not_have(run, result, committed, docs):
    committed(cell(killed=100), kernel="7.2.13")

    run("update", "--replace", result(cell(killed=100), kernel="7.3.1"))

    assert "7.2" not in (docs / "enforcement-matrix.json").read_text()


def test_page_has_one_column_for_each_kernel(run, result, docs):
    run(
        "update",
        result(cell(killed=100), cell(denied=100, vector="proc-environ")),
        result(cell(killed=97, leaked=3), kernel="5.10.9"),
    )

    page = (docs / "enforcement-matrix.md").read_text()
    assert f"## lsm, booted with `{ADVISED}`" in page
    assert "| vector | way | mode | doors (ABI) | 5.10 | 6.1 |" in page
    assert "| enforce | plain (64) | killed 97 of 100, **leaked 3 of 100** | killed |" in page
    assert "| proc-environ | read | enforce | plain (64) |  | denied |" in page


def test_page_has_one_line_for_doors_that_end_alike(run, result, docs):
    run(
        "update",
        result(
            cell(killed=100, abi="32"),
            cell(killed=100),
            cell(killed=100, door="thread"),
            cell(killed=50, door="io-uring"),
        ),
    )

    page = (docs / "enforcement-matrix.md").read_text()
    assert "| enforce | plain (32, 64), thread (64) | killed |" in page
    assert "| enforce | io-uring (64) | killed 50 of 100 |" in page


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"detected": 100, "leaked": 100}, "detected"),
        ({"leaked": 100}, "**leaks**"),
        ({}, "nothing came of it"),
        ({"killed": 60, "denied": 40}, "killed 60 of 100, denied 40 of 100"),
        ({"killed": 100, "leaked": 100}, "killed 100 of 100, **leaked 100 of 100**"),
    ],
)
def test_page_tells_each_outcome(run, result, docs, counts, told):
    run("update", result(cell(**counts)))

    assert f"| plain (64) | {told} |" in (docs / "enforcement-matrix.md").read_text()


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("{", "cannot be read"),
        ("{}", "is no result"),
        ("[]", "is no result"),
        (json.dumps({"kernel": "x", "boot": "", "layer": "lsm", "cells": []}), "is no kernel version"),
        (
            json.dumps({"kernel": "6.1", "boot": "", "layer": "lsm", "cells": [cell(attempts=0)]}),
            "without attempts",
        ),
        (
            json.dumps({"kernel": "6.1", "boot": "", "layer": "lsm", "cells": [cell(killed=101)]}),
            "more than its attempts",
        ),
    ],
)
def test_broken_result_is_refused_by_name(run, tmp_path, capsys, broken, told):
    path = tmp_path / "broken.json"
    path.write_text(broken)

    assert run("update", str(path)) == 2

    err = capsys.readouterr().err
    assert str(path) in err
    assert told in err


def test_two_results_for_the_same_cell_are_refused(run, result, capsys):
    assert run("check", result(cell(killed=100)), result(cell(killed=99))) == 2

    assert "another result has this cell" in capsys.readouterr().err
