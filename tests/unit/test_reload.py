"""A configuration file that changes as kubelet, an editor and a mistake change it."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import load
from agent.errors import ConfigError
from agent.options import OPTIONS
from agent.reload import ConfigFile, ReloadState
from agent.vectors import Action, Mode


class Mounted:
    """A ConfigMap's folder as kubelet keeps it: config.yaml -> ..data/config.yaml, ..data -> ..N/."""

    def __init__(self, folder: Path):
        self.path = folder / "config.yaml"
        self._folder = folder
        self._versions = 0

    def put(self, text):
        before = (self._folder / "..data").resolve()
        self._versions += 1
        version = self._folder / f"..{self._versions}"
        version.mkdir()
        (version / "config.yaml").write_text(text)
        (self._folder / "..data_tmp").symlink_to(version.name)
        (self._folder / "..data_tmp").rename(self._folder / "..data")
        if not self.path.is_symlink():
            self.path.symlink_to("..data/config.yaml")
        shutil.rmtree(before, ignore_errors=True)  # the first has none before it


class Agent:
    """What the composition does: it starts with a configuration and takes what a poll returns."""

    def __init__(self, path, flags=None, environ=None):
        self.loads = 0
        self.stats = 0
        self._flags = {"config": str(path)} | (flags or {})
        self._environ = environ or {}
        self.config = self._load()
        self.file = ConfigFile(path, self._load, self.config, stat=self._stat)
        self.settle()
        self.loads = 0

    def settle(self):
        """Poll until the file has been found the same twice; return whether there was something to take."""
        taken = [self.file.poll(), self.file.poll()]
        assert taken[0] is None
        self.config = taken[1] or self.config
        return taken[1] is not None

    def _load(self):
        self.loads += 1
        return load(self._flags, self._environ, "the-host")

    def _stat(self, path):
        self.stats += 1
        return os.stat(path)  # noqa: PTH116 - as the agent does


@pytest.fixture
def mounted(tmp_path):
    mounted = Mounted(tmp_path)
    mounted.put("mode: detect\n")
    return mounted


@pytest.fixture
def agent(mounted):
    return Agent(mounted.path)


@pytest.fixture
def lines(caplog, tmp_path):
    caplog.set_level(logging.INFO, "agent.reload")

    def lines():
        found = [record.getMessage().replace(f"{tmp_path}/", "") for record in caplog.records]
        caplog.clear()
        return found

    return lines


def test_a_swapped_configmap_is_taken_without_a_restart(agent, mounted, lines):
    mounted.put("mode: strict\nvectors: {proc-maps: detect}\nlog-all: false\n")

    assert agent.settle()
    assert agent.config.mode is Mode.STRICT
    assert agent.config.actions == {"proc-maps": Action.DETECT}
    assert agent.file.state == ReloadState(reloads=1)
    assert lines() == ["configuration taken from config.yaml, changed: mode, vectors"]


@pytest.mark.usefixtures("mounted")
def test_while_nothing_changes_a_poll_is_one_look(agent):
    agent.stats = 0

    assert [agent.file.poll() for _ in range(7)] == [None] * 7
    assert (agent.stats, agent.loads) == (7, 0)
    assert agent.file.state == ReloadState()


def test_without_a_file_nothing_ever_changes():
    def never(*_):
        pytest.fail("there is nothing to look at")

    config = load({}, {}, "the-host")

    assert ConfigFile(None, never, config, stat=never).poll() is None


def test_a_change_between_the_start_and_the_first_poll_is_taken(mounted):
    def load_again():
        return load({"config": str(mounted.path)}, {}, "the-host")

    current = load_again()
    mounted.put("mode: strict")
    file = ConfigFile(mounted.path, load_again, current)

    assert [file.poll(), file.poll()] == [None, replace(current, mode=Mode.STRICT)]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("mode: strict\nlog-al: true\n", "config.yaml: unknown key 'log-al', did you mean 'log-all'?"),
        ("mode: [strict\n", "config.yaml: not YAML: while parsing a flow sequence"),
        ("mode: strict\nlog-a", "config.yaml: not YAML: while scanning a simple key"),
        ("mode: strict\nnode: 2024-13-45", "config.yaml: not YAML: month must be in 1..12"),
        (
            "mode: strict\nring-bytes: 5\n",
            "config.yaml: ring-bytes: must be from 4096 to 268435456, not 5",
        ),
    ],
    ids=["unknown key", "broken YAML", "half-written", "no date", "not live"],
)
def test_a_broken_file_is_refused_whole_until_it_is_good_again(agent, mounted, lines, text, mistake):
    before = agent.config
    mounted.put(text)

    assert not agent.settle()
    assert agent.config is before
    refused = agent.file.state.refused.replace(f"{mounted.path.parent}/", "")
    assert refused.startswith(mistake)
    assert agent.file.state == ReloadState(refused=agent.file.state.refused, refusals=1)
    assert lines() == [f"configuration refused, the one before stays in force: {refused}"]

    mounted.put("mode: detect\n")

    assert not agent.settle()  # what is in force already is nothing to take
    assert agent.file.state == ReloadState(reloads=1, refusals=1)
    assert lines() == ["configuration taken from config.yaml, changed: nothing"]

    mounted.put("mode: strict\n")

    assert agent.settle()
    assert agent.config.mode is Mode.STRICT


def test_every_mistake_is_in_the_line(agent, mounted, lines):
    mounted.put("mode: strct\nlog-al: true\n")
    agent.settle()

    (line,) = lines()
    assert "'strct'" in line
    assert "'log-al'" in line
    assert "\n" not in line


def test_a_refusal_is_told_once_however_often_it_is_written(agent, mounted, lines):
    for _ in range(3):
        mounted.put("mode: strct\n")
        agent.settle()
        agent.settle()

    assert len(lines()) == 1
    assert (agent.file.state.refusals, agent.loads) == (1, 3)

    mounted.put("mode: strct\nlog-al: true\n")
    agent.settle()

    assert len(lines()) == 1
    assert agent.file.state.refusals == 2

    mounted.put("mode: detect\n")
    agent.settle()
    mounted.put("mode: strct\nlog-al: true\n")
    agent.settle()

    assert len(lines()) == 2
    assert agent.file.state.refusals == 3


def test_a_comment_and_a_touch_change_nothing(agent, mounted, lines):
    mounted.put("# as before\nmode: detect\n")
    assert not agent.settle()
    os.utime(mounted.path, ns=(1, 1))
    assert not agent.settle()

    assert agent.loads == 2
    assert agent.file.state == ReloadState()
    assert lines() == []


def test_a_file_that_is_gone_is_refused_and_taken_when_it_is_back(agent, mounted, lines):
    before = agent.config
    mounted.path.unlink()

    assert not agent.settle()
    assert not agent.settle()
    assert agent.config is before
    assert agent.file.state.refused.endswith("config.yaml: cannot be read: No such file or directory")
    assert (agent.file.state.refusals, agent.loads) == (1, 1)
    assert len(lines()) == 1

    mounted.put("mode: enforce")

    assert agent.settle()
    assert agent.config.mode is Mode.ENFORCE
    assert agent.file.state == ReloadState(reloads=1, refusals=1)


def test_a_file_that_is_being_written_is_waited_for(tmp_path, lines):
    path = tmp_path / "agent.yaml"
    path.write_text("mode: detect\n")
    agent = Agent(path)

    for half in ("", "mod", "mode: strict\nlog", "mode: strict\nlog-all: true\n"):
        path.write_text(half)
        assert agent.file.poll() is None
        assert agent.loads == 0

    assert agent.file.poll() == replace(agent.config, mode=Mode.STRICT, log_all=True)
    assert lines() == ["configuration taken from agent.yaml, changed: mode, log-all"]


def test_what_is_not_live_stays_and_asks_for_a_restart(agent, mounted, lines):
    before = agent.config
    mounted.put("mode: strict\nring-bytes: 8192\nprotect-pid: [7]\n")

    assert agent.settle()
    assert agent.config == replace(before, mode=Mode.STRICT)
    assert agent.file.state == ReloadState(reloads=1, needs_restart=("protect-pid", "ring-bytes"))
    assert lines() == [
        "configuration taken from config.yaml, changed: mode",
        "restart the agent for: protect-pid, ring-bytes",
    ]

    # Said once, and still so after a change of something else and after a refusal.
    mounted.put("mode: enforce\nring-bytes: 8192\nprotect-pid: [7]\n")
    assert agent.settle()
    mounted.put("mode: enforced\n")
    assert not agent.settle()

    assert agent.file.state.needs_restart == ("protect-pid", "ring-bytes")
    assert not any("restart" in line for line in lines())

    mounted.put("mode: enforce\n")

    assert not agent.settle()
    assert agent.file.state.needs_restart == ()


def test_only_what_takes_a_restart_is_nothing_to_take(agent, mounted):
    mounted.put("mode: detect\nring-bytes: 8192\n")

    assert not agent.settle()
    assert agent.file.state == ReloadState(reloads=1, needs_restart=("ring-bytes",))


def test_flags_and_variables_keep_their_places(mounted):
    agent = Agent(mounted.path, {"mode": "enforce"}, {"LOG_ALL": "true"})
    mounted.put("mode: strict\nevents-per-second: 3\n")

    assert agent.settle()
    config = agent.config
    assert (config.mode, config.log_all, config.events_per_second) == (Mode.ENFORCE, True, 3)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.live], ids=lambda each: each.key)
def test_every_live_option_can_change(agent, mounted, option):
    text = {
        "mode": "strict",
        "vectors": "{proc-mem: deny}",
        "events-per-second": "3",
        "protect-exe": "[vault]",
        "exempt-exe": "[/usr/bin/crictl]",
        "namespaces": "[prod]",
        "unknown-pods": "ignore",
    }.get(option.key, str(not option.default).lower())
    mounted.put(f"mode: detect\n{option.key}: {text}\n" if option.key != "mode" else f"mode: {text}\n")

    before = agent.config
    assert agent.settle()
    assert getattr(agent.config, option.field) != getattr(before, option.field)
    assert agent.file.state.needs_restart == ()


def test_a_failure_that_nobody_thought_of_ends_no_agent(mounted, lines):
    config = load({"config": str(mounted.path)}, {}, "the-host")
    failures = iter([ZeroDivisionError(), ConfigError("agent.yaml: wrong")])

    def fail():
        raise next(failures)

    file = ConfigFile(mounted.path, fail, config)

    assert [file.poll(), file.poll(), file.poll()] == [None, None, None]
    assert file.state.refused == f"{mounted.path}: could not be read, see the agent's log"
    failed, refused = lines()
    assert failed == "config.yaml could not be read"
    assert refused.endswith("stays in force: config.yaml: could not be read, see the agent's log")

    mounted.put("mode: strict")

    assert [file.poll(), file.poll()] == [None, None]
    assert file.state == ReloadState(refused="agent.yaml: wrong", refusals=2)
