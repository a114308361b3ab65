import logging

import pytest

from agent import abi
from agent.events import Clocks
from agent.pipeline import Pipeline
from agent.sinks import Memory

SECOND_NS = 1_000_000_000


class World:
    """A clock that tests move, and what the pipeline tells."""

    def __init__(self):
        self.monotonic_ns = 5 * SECOND_NS
        self.clocks = Clocks(monotonic_offset_ns=100 * SECOND_NS, boottime_offset_ns=90 * SECOND_NS)
        self.delays = []

    def pipeline(self, *sinks):
        return Pipeline(
            sinks,
            node="node-1",
            observe_delay=self.delays.append,
            read_clocks=lambda: self.clocks,
            monotonic_ns=lambda: self.monotonic_ns,
        )


class Broken(Memory):
    def emit(self, event):
        raise RuntimeError(f"a mistake about {event['type']}")


@pytest.fixture
def world():
    return World()


def attempt(ktime_ns=4 * SECOND_NS, flags=0):
    record = abi.Attempt()
    record.header.ktime_ns = ktime_ns
    record.header.kind, record.header.size = abi.Kind.ATTEMPT, len(bytes(record))
    record.flags = flags
    record.offender.start_ns = SECOND_NS
    return bytes(record)


def tree_begins():
    record = abi.TreeRecord()
    record.header.kind, record.header.size = abi.Kind.TREE_BEGINS, len(bytes(record))
    return bytes(record)


def test_a_record_reaches_every_sink(world):
    first, second = Memory(), Memory()

    world.pipeline(first, second).feed(attempt())

    assert first.events == second.events
    assert [(each["node"], each["time"]) for each in first.events] == [
        ("node-1", "1970-01-01T00:01:44.000000000Z")
    ]


def test_the_delay_from_the_kernel_is_observed(world):
    pipeline = world.pipeline()

    pipeline.feed(attempt(ktime_ns=world.monotonic_ns - SECOND_NS // 4))
    pipeline.feed(attempt(ktime_ns=world.monotonic_ns + 1))

    assert world.delays == [0.25, 0]


def test_the_self_tests_attempts_are_not_told(world):
    sink = Memory()
    pipeline = world.pipeline(sink)

    pipeline.feed(attempt(flags=abi.AttemptFlag.SELFTEST))
    pipeline.feed(tree_begins())

    assert [event["type"] for event in sink.events] == ["tree-begins"]
    assert len(world.delays) == 1


def test_a_bad_record_is_counted_and_skipped(world):
    sink = Memory()
    pipeline = world.pipeline(sink)

    for record in (b"", attempt()[1:], attempt(flags=64), attempt()):
        pipeline.feed(record)

    assert pipeline.undecodable == 3
    assert pipeline.undelivered == 0
    assert len(sink.events) == 1


def test_bad_records_are_logged_once_a_minute(world, caplog):
    pipeline = world.pipeline()

    with caplog.at_level(logging.WARNING):
        for _ in range(101):
            pipeline.feed(b"")
        world.monotonic_ns += 61 * SECOND_NS
        pipeline.feed(b"")

    assert [record.getMessage() for record in caplog.records] == [
        "a record of the ring buffer was skipped: "
        f"a record of 0 bytes is shorter than its header ({count} so far)"
        for count in (1, 102)
    ]


def test_a_sink_that_fails_is_counted_and_keeps_nothing_from_the_others(world, caplog):
    good, dropping = Memory(), Memory()
    dropping.dropped = 7
    pipeline = world.pipeline(Broken(), good, dropping)

    pipeline.feed(attempt())
    pipeline.feed(attempt())

    assert len(good.events) == 2
    assert pipeline.undelivered == 2 + 7
    assert [record.getMessage() for record in caplog.records] == [
        "a sink failed: RuntimeError('a mistake about attempt') (8 events undelivered so far)"
    ]


@pytest.mark.parametrize(("moved_ns", "start"), [(999_999, "31.000000000"), (SECOND_NS, "32.000000000")])
def test_a_process_keeps_its_start_time_until_the_wall_clock_is_set(world, moved_ns, start):
    sink = Memory()
    pipeline = world.pipeline(sink)
    world.clocks = Clocks(
        monotonic_offset_ns=100 * SECOND_NS + moved_ns, boottime_offset_ns=90 * SECOND_NS + moved_ns
    )

    pipeline.feed(attempt())

    assert sink.events[0]["offender"]["start_time"] == f"1970-01-01T00:01:{start}Z"


def test_closing_closes_every_sink(world):
    sinks = [Memory(), Memory()]

    world.pipeline(*sinks).close()

    assert all(sink.closed for sink in sinks)
