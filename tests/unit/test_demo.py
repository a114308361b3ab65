"""What the demo concludes from what it saw; the attacks themselves need a kernel."""

import os

import pytest

from demo import report
from demo.attacks import ATTACKS, Attempt
from demo.lines import Lines
from demo.scenes import Trial

DOCTOR = {
    "proc-mem": {"open": False, "reason": ""},
    "proc-environ": {"open": True, "reason": "a tracepoint cannot deny"},
}


def trial(*, got_secret, vector=None, outcome="killed", status=0, survived=True):
    event = {"vector": vector, "outcome": outcome} if vector else None
    attempt = Attempt(pid=7, status=status, got_secret=got_secret)
    return Trial(attack=ATTACKS[0], attempt=attempt, event=event, survived=survived)


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as stream:
        yield Lines(stream), writer


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (trial(got_secret=False, vector="proc-mem"), "killed"),
        (trial(got_secret=False, status=-9), "killed"),
        (trial(got_secret=False, vector="proc-mem", outcome="denied"), "denied"),
        (trial(got_secret=True, vector="proc-environ", outcome="detected"), "reported"),
        (trial(got_secret=True), ""),
    ],
)
def test_a_trial_says_what_stopped_it(seen, word):
    assert seen.stopped == word


def test_a_leak_is_what_doctor_does_not_call_open():
    closed = trial(got_secret=True, vector="proc-mem", outcome="detected")
    unseen = trial(got_secret=True)
    is_open = trial(got_secret=True, vector="proc-environ", outcome="detected")
    held = trial(got_secret=False, vector="proc-mem")
    assert report.leaks([closed, unseen, is_open, held], DOCTOR) == [closed, unseen]


def test_the_table_fits_80_columns_and_explains_open_vectors(capsys):
    off = [trial(got_secret=True), trial(got_secret=True), trial(got_secret=False)]
    on = [
        trial(got_secret=False, vector="proc-mem"),
        trial(got_secret=True, vector="proc-environ", outcome="detected"),
        trial(got_secret=False),
    ]
    report.table(off, on, DOCTOR)
    out = capsys.readouterr().out
    assert "got nothing, killed" in out
    assert "got the secret, reported (1)" in out
    assert "(1) proc-environ is open on this node: a tracepoint cannot deny." in out
    assert "this row proves nothing" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("terminal", "environment", "wanted"),
    [
        (True, {"TERM": "xterm"}, True),
        (False, {"TERM": "xterm"}, False),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(monkeypatch, terminal, environment, wanted):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert report.paint("word", "31") == ("\x1b[31mword\x1b[0m" if wanted else "word")


def test_lines_come_one_by_one_and_end(pipe):
    lines, writer = pipe
    os.write(writer, b"one\ntwo\nthr")
    assert lines.next(0).text == "one"
    assert lines.next(0).text == "two"
    assert lines.next(0) is None
    assert not lines.ended
    os.write(writer, b"ee\n")
    os.close(writer)
    assert lines.next(0).text == "three"
    assert lines.next(0) is None
    assert lines.ended
