"""The loop tells what the kernel reports, and holds programs only while they are wanted."""

import ctypes
import logging
import os
import signal

import pytest

from agent import abi, loop
from agent.errors import LoadError
from agent.hooks import While
from agent.loop import OnDemand

REFUSAL = "syscall_exit does not attach to sys_exit: Cannot allocate memory"


class Programs:
    """A kernel that can protect something, and refuse to attach."""

    def __init__(self):
        self.protecting = False
        self.refuses = False
        self.done: list[str] = []

    def protects(self):
        return self.protecting

    def wake(self, demand):
        assert demand is While.SECRETS
        if self.refuses:
            raise LoadError(REFUSAL)
        self.done.append("wake")

    def rest(self, demand):
        assert demand is While.SECRETS
        self.done.append("rest")


@pytest.fixture
def programs():
    return Programs()


@pytest.fixture
def demand(programs):
    return OnDemand(programs, While.SECRETS, programs.protects)


def test_they_are_there_as_soon_as_something_is_protected(programs, demand):
    programs.protecting = True
    demand.follow(1.0)

    assert programs.done == ["wake"]


def test_a_node_that_protects_nothing_pays_from_the_start_on_for_nothing(programs, demand):
    demand.follow(1.0)

    assert programs.done == ["rest"]


def test_they_stay_for_a_while_after_the_last_wrapper(programs, demand):
    programs.protecting = True
    demand.follow(100.0)
    programs.protecting = False
    demand.follow(109.9)

    assert programs.done == ["wake"]
    demand.follow(110.0)
    assert programs.done == ["wake", "rest"]


def test_a_failure_to_attach_is_told_once_and_ends_nothing(programs, demand, caplog):
    programs.protecting = programs.refuses = True
    with caplog.at_level(logging.ERROR):
        demand.follow(1.0)
        demand.follow(2.0)
    programs.refuses = False
    demand.follow(3.0)

    assert [record.getMessage() for record in caplog.records] == [
        f"{REFUSAL}: what it watches is open until it does"
    ]
    assert programs.done == ["wake"]


def tree_record(kind):
    size = ctypes.sizeof(abi.TreeRecord)
    return bytes(abi.TreeRecord(header=abi.Header(kind=kind, size=size)))


def test_the_end_of_a_wrapper_is_not_yet_the_end_of_its_tree():
    fed: list[bytes] = []
    gone: list[bytes] = []
    begins, ends = tree_record(abi.Kind.TREE_BEGINS), tree_record(abi.Kind.TREE_ENDS)

    def wrapper_gone(record):
        gone.append(record)
        return False

    loop.take([begins, ends, b"garbage"], feed=fed.append, handlers={abi.Kind.TREE_ENDS: wrapper_gone})

    assert (fed, gone) == ([begins, b"garbage"], [ends])


@pytest.mark.parametrize("told", [True, False])
def test_a_record_that_was_handled_is_told_if_the_handler_says_so(told):
    fed: list[bytes] = []
    record = tree_record(abi.Kind.TREE_BEGINS)
    loop.take([record], feed=fed.append, handlers={abi.Kind.TREE_BEGINS: lambda _record: told})

    assert fed == [record] * told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_something_to_read(number):
    before = signal.getsignal(number)
    with loop.stop_signals() as stop:
        os.kill(os.getpid(), number)

        assert stop.recv(1) == bytes([number])
    assert signal.getsignal(number) is before
