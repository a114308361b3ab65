import fcntl
import json
import os
import resource
import selectors
import socket
import stat
import threading
from pathlib import Path

import pytest

from agent.control import ControlServer, request
from agent.errors import AgentError, ConfigError
from agent.events import TreeId


class Loop:
    """The agent's loop in a thread, and what it was asked to protect."""

    def __init__(self, path, *, replace=False):
        self.protected = []
        self.status = {"mode": "enforce"}
        self.server = ControlServer(path, protect=self.protect, status=lambda: self.status, replace=replace)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.server, selectors.EVENT_READ, self.server.handle)
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def protect(self, pid):
        if self.protected is None:
            raise AgentError("no more room")
        self.protected.append(pid)
        return TreeId(pid=pid, start_ns=17)

    def _run(self):
        while not self._ended:
            for key, _ in self._selector.select(timeout=0.02):
                key.data()

    def end(self):
        self._ended = True
        self._thread.join()
        self.server.close()
        self._selector.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "agent.sock"


@pytest.fixture
def loop(path):
    loop = Loop(path)
    yield loop
    loop.end()


@pytest.fixture
def connect(path):
    opened = []

    def connect():
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened.append(connection)
        connection.settimeout(5)
        connection.connect(str(path))
        return connection

    yield connect
    for connection in opened:
        connection.close()


def answers(connection, count):
    stream = connection.makefile("rb")
    with stream:
        return [json.loads(stream.readline()) for _ in range(count)]


def is_closed(connection):
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def listening(path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_who_asks_is_protected(path, loop):
    answer = request(path, "protect", 5)

    assert answer == {"v": 1, "ok": True, "tree": f"{os.getpid()}:17"}
    assert loop.protected == [os.getpid()]


def test_the_status_is_told(path, loop):
    assert request(path, "status", 5) == {"v": 1, "ok": True, "status": {"mode": "enforce"}}


def test_a_refusal_is_the_clients_error(path, loop):
    loop.protected = None

    with pytest.raises(AgentError, match=r"^no more room$"):
        request(path, "protect", 5)


def test_a_mistake_of_the_agents_is_no_end_of_the_loop(path, loop, caplog):
    loop.status = None

    with pytest.raises(AgentError, match="the agent could not do it, see its log"):
        request(path, "status", 5)
    loop.status = {}

    assert request(path, "status", 5)["status"] == {}
    assert [record.getMessage() for record in caplog.records] == ["a request on the control socket failed"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", "a request is one JSON object a line"),
        (b"\xff", "a request is one JSON object a line"),
        (b"[" * 4000, "a request is one JSON object a line"),
        (b"[]", "this agent speaks version 1"),
        (b'{"op": "status"}', "this agent speaks version 1"),
        (b'{"v": 2, "op": "status"}', "this agent speaks version 1"),
        (b'{"v": 1}', "unknown op None, known are protect and status"),
        (b'{"v": 1, "op": "detach"}', "unknown op 'detach', known are protect and status"),
    ],
)
def test_what_is_no_request_is_refused(loop, connect, line, error):
    connection = connect()
    connection.sendall(line + b"\n")

    assert answers(connection, 1) == [{"v": 1, "ok": False, "error": error}]


def test_requests_may_come_in_pieces_and_together(loop, connect):
    connection = connect()
    connection.sendall(b'{"v": 1, ')
    connect().sendall(b'{"v"')
    connection.sendall(b'"op": "status"}\n{"v": 1, "op": "status"}\n')

    assert [answer["ok"] for answer in answers(connection, 2)] == [True, True]


def test_a_line_too_long_is_the_end(loop, connect):
    connection = connect()
    connection.sendall(b"x" * 5000)

    assert answers(connection, 1)[0]["error"] == "a request has at most 4096 bytes"
    assert is_closed(connection)


def test_a_client_that_does_not_read_is_dropped(path, loop, connect):
    loop.status = {"text": "x" * 100_000}
    connection = connect()
    connection.settimeout(0)
    with pytest.raises((BrokenPipeError, ConnectionResetError, BlockingIOError)):  # noqa: PT012
        for _ in range(10_000):
            connection.send(b'{"v": 1, "op": "status"}\n' * 100)
    connection.settimeout(5)

    assert is_closed(connection)
    assert request(path, "status", 5)["ok"]


def test_the_oldest_connection_gives_way(path, loop, connect):
    connections = [connect() for _ in range(64)]
    connections[-1].sendall(b'{"v": 1, "op": "status"}\n')
    answers(connections[-1], 1)

    assert request(path, "status", 5)["ok"]
    assert is_closed(connections[0])
    connections[1].sendall(b'{"v": 1, "op": "status"}\n')
    assert answers(connections[1], 1)[0]["ok"]


@pytest.fixture
def server(path):
    """Return a server that nobody drives but the test."""
    server = ControlServer(path, protect=lambda pid: TreeId(pid=pid, start_ns=0), status=dict)
    yield server
    server.close()


def test_a_connection_may_give_way_in_the_turn_in_which_it_speaks(server, connect):
    first = connect()
    server.handle()
    others = [connect() for _ in range(63)]
    server.handle()
    for _ in others:
        server.handle()

    others.append(connect())
    first.sendall(b'{"v": 1, "op": "status"}\n')
    server.handle()

    assert is_closed(first)
    assert len(server._connections) == 64


def test_a_client_that_leaves_without_reading_is_dropped(server, connect):
    connection = connect()
    server.handle()
    connection.sendall(b'{"v": 1, "op": "status"}\n')
    server.handle()
    connection.close()
    server.handle()

    assert not server._connections


def test_without_a_descriptor_to_spare_the_first_connection_gives_way(server, connect):
    first = connect()
    server.handle()
    second = connect()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, limits[1]))
    try:
        os.close(spare)
        server.handle()
        server.handle()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    second.sendall(b'{"v": 1, "op": "status"}\n')
    server.handle()

    assert is_closed(first)
    assert answers(second, 1)[0]["ok"]


def test_a_client_that_goes_away_leaves_nothing(path, loop, connect):
    for _ in range(101):
        connection = connect()
        connection.sendall(b'{"v": 1, "op": "status"}\n')
        connection.close()

    assert request(path, "status", 5)["ok"]
    assert len(loop.server._connections) <= 1


def test_a_peer_that_cannot_be_seen_is_refused(loop, connect, monkeypatch):
    monkeypatch.setattr("agent.control._UCRED", Unseen())
    connection = connect()
    connection.sendall(b'{"v": 1, "op": "protect"}\n')

    assert "another pid namespace" in answers(connection, 1)[0]["error"]


class Unseen:
    """What SO_PEERCRED gives for a process outside our pid namespace."""

    size = 12

    def unpack(self, raw):
        assert len(raw) == self.size
        return (0, 0, 0)


def test_only_root_may_connect(path, loop):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_closing_removes_the_socket_and_hangs_up(path, connect):
    loop = Loop(path)
    connection = connect()
    request(path, "status", 5)
    loop.end()

    assert not path.exists()
    assert is_closed(connection)


def test_closing_leaves_what_is_not_ours(path):
    loop = Loop(path)
    path.unlink()
    path.write_text("another's")
    loop.end()

    assert path.read_text() == "another's"


def test_closing_twice_removed_is_no_error(path):
    loop = Loop(path)
    path.unlink()
    loop.end()

    assert not path.exists()


def test_a_second_agent_on_the_same_path_is_refused(path, loop):
    with pytest.raises(ConfigError) as caught:
        Loop(path)

    assert str(caught.value) == (
        f"another agent is running at {path}: stop it, or choose another socket with --socket-path"
    )
    assert request(path, "status", 5)["ok"]


def test_an_agent_that_is_too_busy_to_answer_is_not_taken_for_dead(path):
    path.parent.mkdir()
    with listening(path) as listener:
        listener.listen(0)
        waiting = []
        with pytest.raises(BlockingIOError):  # noqa: PT012 - until the backlog is full
            for _ in range(101):
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                waiting[-1].connect(str(path))

        with pytest.raises(ConfigError, match="another agent is running"):
            Loop(path)
        for each in waiting:
            each.close()


def test_a_stale_socket_is_replaced(path):
    path.parent.mkdir()
    listening(path).close()
    loop = Loop(path)

    assert request(path, "status", 5)["ok"]
    loop.end()


def test_the_next_agent_of_a_node_takes_the_socket_over_and_keeps_it(path, connect):
    before = Loop(path)
    connection = connect()
    after = Loop(path, replace=True)
    after.status = {"mode": "the next"}

    assert request(path, "status", 5)["status"] == {"mode": "the next"}
    connection.sendall(b'{"v": 1, "op": "status"}\n')
    assert answers(connection, 1)[0]["status"] == {"mode": "enforce"}
    before.end()
    assert is_closed(connection)
    assert request(path, "status", 5)["status"] == {"mode": "the next"}
    after.end()
    assert list(path.parent.iterdir()) == []


def test_what_is_no_socket_is_not_taken_over(path):
    path.parent.mkdir()
    path.write_text("somebody's")
    with pytest.raises(ConfigError, match="is no socket"):
        Loop(path, replace=True)

    assert path.read_text() == "somebody's"


def test_there_is_a_socket_at_any_time_while_it_is_taken_over(path, loop, monkeypatch):
    answered = []
    rename = Path.rename

    def rename_later(made, target):
        answered.append(request(path, "status", 5)["ok"])
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        rename(made, target)

    monkeypatch.setattr(Path, "rename", rename_later)
    after = Loop(path, replace=True)
    after.end()

    assert answered == [True]


@pytest.mark.parametrize("replace", [False, True])
def test_what_an_agent_left_that_was_killed_while_it_began_is_no_obstacle(path, replace):
    path.parent.mkdir()
    listening(path.with_name(f".{os.getpid()}")).close()
    loop = Loop(path, replace=replace)

    assert request(path, "status", 5)["ok"]
    loop.end()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_socket_is_left_alone(path, kind):
    path.parent.mkdir()
    if kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to("/etc/passwd")

    with pytest.raises(ConfigError, match="is there and is no socket: remove it, or choose another"):
        Loop(path)
    assert path.is_symlink() or path.read_text() == "precious"


def test_two_agents_that_start_at_once_do_not_take_each_others_socket(path):
    path.parent.mkdir()
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)

    with pytest.raises(ConfigError, match="another agent is starting at"):
        Loop(path)
    os.close(folder)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/proc/no/agent.sock", "No such file or directory"),
        ("/dev/null/agent.sock", "Not a directory|File exists"),
        ("/proc/agent.sock", "Operation not permitted|No such file or directory|Permission denied"),
    ],
)
def test_a_path_where_no_socket_can_be_is_told(path, reason):
    with pytest.raises(ConfigError, match=rf"socket {path} cannot be made: ({reason})"):
        Loop(Path(path))


def test_without_an_agent_the_client_says_how_to_start_one(path):
    with pytest.raises(AgentError) as caught:
        request(path, "status", 5)

    assert str(caught.value) == f"no agent is running at {path}: start it with `cloudtaser-ebpf run`"


def test_an_agent_that_does_not_answer_is_told(path):
    path.parent.mkdir()
    with listening(path), pytest.raises(AgentError, match=r"did not answer within 0\.05 s"):
        request(path, "status", 0.05)


def test_who_may_not_connect_is_told(path, loop):
    path.chmod(0)
    outcome = []

    def ask():
        # Threads have credentials of their own; root must become somebody else to be refused.
        libc_setfsuid(65534)
        try:
            request(path, "status", 5)
        except AgentError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()

    assert outcome == [f"the agent at {path} answers root only: run this as root"]


def libc_setfsuid(uid):
    import ctypes  # noqa: PLC0415

    ctypes.CDLL(None).setfsuid(uid)


@pytest.mark.parametrize("line", [b"", b"hello", b"[]", b"{}", b'{"v": 1, "ok": false}', b"7"])
def test_what_is_no_agent_is_told(path, line):
    path.parent.mkdir()
    with listening(path) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(line + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(AgentError, match="is no agent of this version"):
            request(path, "status", 5)
        thread.join()
