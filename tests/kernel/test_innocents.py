"""What everybody does all day goes on as without the agent, and nobody is killed for it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.build import WRAPPER_NAME, Programs
from tests.kernel.keeper import Keeper, agents
from tests.kernel.tools import Ran, run, run_in_terminal
from tests.kernel.victim import Victim

# Read by ps and lsof of every process; `enforce` denies them, where it can, and kills nobody.
_TOLERATED = {"proc-environ", "proc-maps"}
_LINKS = (
    "exe",
    "cwd",
    "root",
    "fd/0",
    *(f"ns/{name}" for name in ("mnt", "pid", "net", "uts", "ipc", "user")),
)
_FILES = ("stat", "statm", "status", "cmdline", "comm", "io", "limits", "cgroup", "mountinfo", "net/dev")
_BOTH = ("off", "enforce")

pytestmark = agents(*_BOTH)


@pytest.fixture
def undisturbed(keeper: Keeper, victim: Victim) -> Iterator[Victim]:
    """A wrapper, and the assertion that nothing worse than a look at its environment was seen."""
    if keeper.mode is None:
        yield victim
        return
    agent = keeper.agent()
    seen = len(agent.events)
    counted = agent.counts()
    yield victim
    outcomes = agent.counts().since(counted).outcomes
    assert all(vector in _TOLERATED and outcome != "killed" for vector, outcome in outcomes), outcomes
    assert [event for event in agent.events[seen:] if event["outcome"] == "killed"] == []


@pytest.mark.parametrize(
    "command",
    [
        ("ps", "-ef"),
        ("ps", "auxe"),
        ("ps", "-eLf"),
        ("top", "-b", "-n1", "-w", "200"),
        ("pgrep", "-a", WRAPPER_NAME),
        ("pstree", "-pl"),
        ("ss", "-tunap"),
    ],
    ids=" ".join,
)
def test_lists_of_processes(undisturbed: Victim, command: tuple[str, ...]):
    """Lists of processes show the wrapper or at least work; they run in every monitoring agent."""
    ran = run(*command)

    assert ran.code == 0
    assert command[0] == "ss" or str(undisturbed.pid).encode() in ran.output


def test_htop(undisturbed: Victim):
    """A full-screen viewer starts, shows something and quits."""
    assert undisturbed.pid
    assert run_in_terminal(["htop"], b"q").code == 0


def test_lsof(undisturbed: Victim):
    """The list of its open files has its standard streams, whether or not its mappings are shown."""
    ran = run("lsof", "-n", "-P", "-p", str(undisturbed.pid))

    assert WRAPPER_NAME[:9].encode() in ran.output


@pytest.mark.parametrize("link", _LINKS)
def test_links(undisturbed: Victim, link: str):
    """The links that nsenter, runc exec and exec probes follow can be read and opened."""
    path = Path(f"/proc/{undisturbed.pid}/{link}")

    assert str(path.readlink())
    path.stat()


@pytest.mark.parametrize("name", _FILES)
def test_files_of_monitors(undisturbed: Victim, name: str):
    """The files that node exporters, the kubelet and systemd read of every process hold something."""
    for path in (
        f"/proc/{undisturbed.pid}/{name}",
        f"/proc/{undisturbed.pid}/task/{undisturbed.where.tid}/{name}",
    ):
        assert Path(path).read_bytes()


def test_nsenter(undisturbed: Victim):
    """Its namespaces can be entered."""
    assert run("nsenter", "--target", str(undisturbed.pid), "--all", "true") == Ran(code=0, output=b"")


@pytest.mark.parametrize("command", ["trace-own-child", "process-vm-own-child", "mem-own-child"])
def test_own_child(undisturbed: Victim, command: str):
    """Inside a tree everything is allowed: crash handlers, profilers, debuggers of one's own children."""
    assert undisturbed.ask(command).answer == "worked"


@pytest.mark.parametrize("tool", ["gdb", "strace"])
def test_debugging_of_others(undisturbed: Victim, programs: Programs, tool: str):
    """A process that is not protected can be debugged."""
    assert undisturbed.pid
    with Victim([programs.nobody()]) as other:
        address, length = other.where.address, len(other.where.secret)
        if tool == "gdb":
            ran = run("gdb", "-nx", "-batch", "-p", str(other.pid), "-ex", f"x/s {address}")
            assert other.where.secret.encode() in ran.output, length
        else:
            ran = run("timeout", "--signal=INT", "1", "strace", "-p", str(other.pid))
            assert b"read(0" in ran.output
        other.check()


def test_strace_of_a_command(undisturbed: Victim, tmp_path: Path):
    """A program that is not a wrapper can be started by a debugger."""
    assert undisturbed.pid
    assert run("strace", "-f", "-o", tmp_path / "trace", "sh", "-c", "true").code == 0


def test_signals(undisturbed: Victim):
    """A wrapper can be stopped and continued by hand, as kubelet and operators do."""
    subprocess.run(["kill", "-STOP", str(undisturbed.pid)], check=True)
    state = Path(f"/proc/{undisturbed.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    subprocess.run(["kill", "-CONT", str(undisturbed.pid)], check=True)

    assert state in "TRS"  # it stops when it next runs
    undisturbed.check()
