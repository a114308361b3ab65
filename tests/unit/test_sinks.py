import fcntl
import json
import os
import select

import pytest

from agent.sinks import JsonLines, Memory

EVENT = {"type": "attempt", "comm": "évil\x1b[2J\u2028", "pid": None}


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with open(reader, "rb", buffering=0) as read, open(writer, "wb", buffering=0) as write:  # noqa: PTH123
        yield read, write


def test_an_event_is_one_line_of_ascii(pipe):
    reader, writer = pipe

    JsonLines(writer).emit(EVENT)
    line = reader.read(4096)

    assert line == b'{"type":"attempt","comm":"\\u00e9vil\\u001b[2J\\u2028","pid":null}\n'
    assert json.loads(line) == EVENT


def test_a_closed_pipe_counts_drops(pipe):
    reader, writer = pipe
    sink = JsonLines(writer)
    reader.close()

    sink.emit(EVENT)
    sink.emit(EVENT)

    assert sink.dropped == 2


def test_a_reader_who_sleeps_loses_events_and_gets_whole_lines_later(pipe):
    reader, writer = pipe
    sink = JsonLines(writer)
    for _ in range(101):
        sink.emit({"text": "x" * 101})
    kept = 101 - sink.dropped
    lines = reader.read(8192).splitlines(keepends=True)
    sink.emit(EVENT)

    assert 0 < kept < 101
    assert len(lines) == kept
    assert all(line.endswith(b"\n") for line in lines)
    assert json.loads(reader.read(8192)) == EVENT


def test_half_a_line_does_not_spoil_the_next(pipe):
    reader, writer = pipe
    os.set_blocking(writer.fileno(), False)  # so that a long line is written in part
    sink = JsonLines(writer)

    sink.emit({"text": "x" * 8192})
    reader.read(4096)
    texts = []
    for _ in range(2):
        sink.emit(EVENT)
        texts.append(reader.read(4096))

    assert sink.dropped == 1
    assert [json.loads(text) for text in texts] == [EVENT, EVENT]
    assert [text.startswith(b"\n") for text in texts] == [True, False]


def test_what_could_not_begin_leaves_the_next_line_clean(pipe):
    reader, writer = pipe
    sink = JsonLines(writer)
    sink._poll = select.poll()  # nothing is ever ready

    sink.emit(EVENT)
    sink._poll.register(writer, select.POLLOUT)
    sink.emit(EVENT)

    assert sink.dropped == 1
    assert json.loads(reader.read(4096)) == EVENT


def test_closing_leaves_the_stream_open(pipe):
    _, writer = pipe

    JsonLines(writer).close()

    assert not writer.closed


def test_memory_keeps_events():
    sink = Memory()

    sink.emit(EVENT)
    sink.close()

    assert (sink.events, sink.dropped, sink.closed) == ([EVENT], 0, True)
