"""The agent's local socket: one JSON object a line, each with the protocol's version.

    {"v": 1, "op": "protect"}  ->  {"v": 1, "ok": true, "tree": "<pid>:<start_ns>"}
    {"v": 1, "op": "status"}   ->  {"v": 1, "ok": true, "status": {…}}
    anything else              ->  {"v": 1, "ok": false, "error": "…"}

Who asks is known from the kernel (SO_PEERCRED), never from what they say. The server never waits: it lives
in the agent's one loop, as a single descriptor.
"""

import fcntl
import json
import logging
import os
import selectors
import socket
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent.errors import AgentError, ConfigError
from agent.events import TreeId

VERSION = 1

_CONNECTIONS = 64
_LINE_BYTES = 4096
_UCRED = struct.Struct("3i")  # pid, uid, gid
_log = logging.getLogger(__name__)


class ControlServer:
    """Listens on a socket that only root can open, and answers with two callbacks."""

    def __init__(
        self,
        path: Path,
        *,
        protect: Callable[[int], TreeId],
        status: Callable[[], Mapping[str, Any]],
        replace: bool = False,
    ) -> None:
        """Listen at `path`; `protect` gets the peer's process id. An `AgentError` of theirs is the answer.

        With `replace` the socket of an agent that runs is taken over: it goes when the next one is ready.
        """
        self._path = path
        self._protect = protect
        self._status = status
        self._listener = _listen(path, replace=replace)
        self._identity = _identity(path)
        # An epoll descriptor is readable when one of its own is, so the whole server is one descriptor.
        self._inner = selectors.EpollSelector()
        self._inner.register(self._listener, selectors.EVENT_READ)
        self._connections: dict[socket.socket, bytes] = {}  # and what came of a line not yet whole

    def fileno(self) -> int:
        """Return a descriptor that is readable when `handle` has something to do."""
        return self._inner.fileno()

    def handle(self) -> None:
        """Do what can be done now without waiting."""
        for key, _ in self._inner.select(timeout=0):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._connections:
                self._read(key.fileobj)

    def close(self) -> None:
        """Stop listening, hang up, and remove the socket if it is still ours."""
        for connection in list(self._connections):
            self._drop(connection)
        self._inner.close()
        self._listener.close()
        if _identity(self._path) == self._identity:
            self._path.unlink()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # out of descriptors: the next turn of the loop has one more
            self._drop_first()
            return
        connection.settimeout(0)
        if len(self._connections) >= _CONNECTIONS:
            self._drop_first()
        self._connections[connection] = b""
        self._inner.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        try:
            received = connection.recv(_LINE_BYTES)
        except OSError:
            received = b""
        if not received:
            self._drop(connection)
            return
        *lines, rest = (self._connections[connection] + received).split(b"\n")
        self._connections[connection] = rest
        answers = [self._answer(connection, line) for line in lines]
        too_long = len(rest) > _LINE_BYTES
        if too_long:
            answers.append(_refusal(f"a request has at most {_LINE_BYTES} bytes"))
        sent = _send(connection, answers)
        if too_long or not sent:
            self._drop(connection)

    def _answer(self, connection: socket.socket, line: bytes) -> dict[str, Any]:
        try:
            return {"v": VERSION, "ok": True} | self._perform(connection, _op(line))
        except AgentError as error:
            return _refusal(str(error))
        except Exception:  # noqa: BLE001 - the loop goes on whatever a callback does
            _log.exception("a request on the control socket failed")
            return _refusal("the agent could not do it, see its log")

    def _perform(self, connection: socket.socket, op: object) -> dict[str, Any]:
        match op:
            case "protect":
                return {"tree": str(self._protect(_peer_pid(connection)))}
            case "status":
                return {"status": dict(self._status())}
            case _:
                raise AgentError(f"unknown op {op!r}, known are protect and status")

    # The one that came first has had its time.
    def _drop_first(self) -> None:
        for connection in list(self._connections)[:1]:
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        del self._connections[connection]
        self._inner.unregister(connection)
        connection.close()


def request(path: Path, op: str, timeout_s: float) -> dict[str, Any]:
    """Ask the running agent and return its answer, or raise an `AgentError` with the reason."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps({"v": VERSION, "op": op}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except PermissionError as error:
            raise AgentError(f"the agent at {path} answers root only: run this as root") from error
        except TimeoutError as error:
            raise AgentError(f"the agent at {path} did not answer within {timeout_s:g} s") from error
        except OSError as error:
            raise AgentError(f"no agent is running at {path}: start it with `cloudtaser-ebpf run`") from error
    try:
        answer = json.loads(line)
        if answer["v"] == VERSION and answer["ok"] is True:
            return dict(answer)
        reason = str(answer["error"])
    except (ValueError, TypeError, KeyError) as error:
        raise AgentError(f"what answers at {path} is no agent of this version") from error
    raise AgentError(reason)


def _refusal(reason: str) -> dict[str, Any]:
    return {"v": VERSION, "ok": False, "error": reason}


def _op(line: bytes) -> object:
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AgentError("a request is one JSON object a line") from error
    if not isinstance(asked, dict) or asked.get("v") != VERSION:
        raise AgentError(f"this agent speaks version {VERSION}")
    return asked.get("op")


# An answer fits the socket's buffer, unless the peer asks and asks and does not read.
def _send(connection: socket.socket, answers: list[dict[str, Any]]) -> bool:
    data = b"".join(json.dumps(answer).encode() + b"\n" for answer in answers)
    try:
        return connection.send(data) == len(data)
    except OSError:
        return False


def _peer_pid(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid: int = _UCRED.unpack(raw)[0]
    if pid <= 0:
        raise AgentError("the agent cannot see your process: it runs in another pid namespace")
    return pid


def _listen(path: Path, *, replace: bool) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"socket {path} cannot be made: {error.strerror}") from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Two agents that start together would each take the other's new socket for a stale one.
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_stale(path, replace=replace)
        # Beside its place and then moved there, so that there is one at any time.
        made = path.with_name(f".{os.getpid()}")
        made.unlink(missing_ok=True)
        listener.bind(str(made))
        made.chmod(0o600)  # before listen: until then nobody can connect
        listener.listen()
        made.rename(path)
    except BlockingIOError as error:
        listener.close()
        raise ConfigError(f"another agent is starting at {path}: {_INSTEAD}") from error
    except OSError as error:
        listener.close()
        raise ConfigError(f"socket {path} cannot be made: {error.strerror}") from error
    except ConfigError:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


_INSTEAD = "stop it, or choose another socket with --socket-path"


# Whatever is not a socket stays; one that an agent listens at stays unless it is to be replaced.
def _remove_stale(path: Path, *, replace: bool) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"{path} is there and is no socket: remove it, or choose another with --socket-path"
        )
    if replace:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # somebody listens and is busy
    raise ConfigError(f"another agent is running at {path}: {_INSTEAD}")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
