"""Tools that people attack with get the secret without the agent, and nothing with it."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.agent import Agent, Event
from tests.kernel.build import Programs
from tests.kernel.keeper import Keeper, agents
from tests.kernel.tools import run
from tests.kernel.victim import Victim, Whereabouts
from tests.kernel.waiting import PATIENCE_S, LineReader

_READER = """
import ctypes, sys
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
pid, address, length = map(int, sys.argv[1:])
copy = ctypes.create_string_buffer(length)
here, there = Vector(ctypes.addressof(copy), length), Vector(address, length)
ctypes.CDLL(None).process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
sys.stdout.buffer.write(copy.raw)
"""


def _gdb(where: Whereabouts, directory: Path) -> bytes:
    dump = directory / "dump"
    end = where.address + len(where.secret)
    command = f"dump binary memory {dump} {where.address} {end}"
    run("gdb", "-nx", "-batch", "-p", str(where.pid), "-ex", command)
    return dump.read_bytes() if dump.exists() else b""


def _gcore(where: Whereabouts, directory: Path) -> bytes:
    run("gcore", "-o", directory / "core", str(where.pid))
    return b"".join(core.read_bytes() for core in directory.glob("core*"))


def _dd(where: Whereabouts, directory: Path) -> bytes:
    return run(
        "dd",
        *(f"if=/proc/{where.pid}/mem", f"of={directory / 'copy'}", "bs=4096", "iflag=skip_bytes,count_bytes"),
        *(f"skip={where.address}", f"count={len(where.secret)}", "status=none"),
    ).output + _content(directory / "copy")


def _python(where: Whereabouts, _: Path) -> bytes:
    return run(sys.executable, "-c", _READER, *map(str, (where.pid, where.address, len(where.secret)))).output


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


TOOLS: dict[str, Callable[[Whereabouts, Path], bytes]] = {
    "gdb": _gdb,
    "gcore": _gcore,
    "dd": _dd,
    "python": _python,
}


@agents("off")
@pytest.mark.parametrize("tool", TOOLS)
def test_tool_gets_secret_without_agent(keeper: Keeper, victim: Victim, tmp_path: Path, tool: str):
    """The tool works, so that its failure elsewhere means something."""
    assert keeper.mode is None
    assert victim.where.secret.encode() in TOOLS[tool](victim.where, tmp_path)


@agents("enforce", "strict")
@pytest.mark.parametrize("tool", TOOLS)
def test_tool_gets_nothing(agent: Agent, victim: Victim, tmp_path: Path, tool: str):
    """The tool does not get the secret, it is killed and told, and the wrapper survives."""
    seen = len(agent.events)
    assert victim.where.secret.encode() not in TOOLS[tool](victim.where, tmp_path)

    agent.wait_for(lambda event: event["outcome"] == "killed" and _is(event, victim), since=seen)
    victim.check()


def _is(event: Event, victim: Victim) -> bool:
    return event["target"]["pid"] == victim.pid


def _strace(victim: Victim, tmp_path: Path) -> tuple[int, bytes]:
    """Trace a victim while it writes its secret; strace says on standard error when it has begun."""
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-s", "64", "-e", "trace=write", "-o", str(trace), "-p", str(victim.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, bufsize=0) as strace:
        assert strace.stderr
        if "attached" in LineReader(strace.stderr.fileno()).line():
            assert victim.ask("write-secret").answer == "worked"
            strace.send_signal(signal.SIGINT)
        return strace.wait(PATIENCE_S), _content(trace)


@agents("off")
def test_strace_sees_secret_without_agent(keeper: Keeper, victim: Victim, tmp_path: Path):
    """Strace shows what a process writes, so that its failure elsewhere means something."""
    assert keeper.mode is None
    assert victim.where.secret.encode() in _strace(victim, tmp_path)[1]


@agents("enforce")
def test_strace_sees_nothing(agent: Agent, victim: Victim, tmp_path: Path):
    """Strace is killed as it attaches, and the wrapper goes on."""
    seen = len(agent.events)
    code, trace = _strace(victim, tmp_path)

    assert code == -signal.SIGKILL
    assert victim.where.secret.encode() not in trace
    agent.wait_for(lambda event: event["vector"] == "ptrace-attach" and _is(event, victim), since=seen)


@agents("enforce")
def test_debugger_cannot_start_a_wrapper(agent: Agent, programs: Programs, tmp_path: Path):
    """A debugger that starts a wrapper as its child never gets to its first instruction."""
    seen = len(agent.events)
    ran = run("strace", "-o", tmp_path / "trace", programs.wrapper())

    assert b"ready" not in ran.output
    agent.wait_for(lambda event: event["vector"] == "ptrace-traceme", since=seen)
