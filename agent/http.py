"""The HTTP surface: /metrics, /healthz, /readyz and /status, for GET and HEAD.

It may be open to the whole cluster, so a client gets little: one request a connection, few connections,
and a few seconds.
"""

import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Protocol

from agent.errors import ConfigError
from agent.options import Address

_log = logging.getLogger(__name__)

_CONNECTIONS = 16  # a scraper, the probes and somebody with curl
_SECONDS = 10.0  # for a whole connection; a scrape takes milliseconds
_PLAIN = "text/plain; charset=utf-8"
_PATHS = b"try /metrics, /healthz, /readyz or /status\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An answer to a probe, with a sentence for people."""

    ok: bool
    text: str


class Views(Protocol):
    """What is behind the paths; called from the server's threads."""

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return content type and body for an Accept header."""
        ...

    def healthy(self) -> Status:
        """Tell whether the agent works."""
        ...

    def ready(self) -> Status:
        """Tell whether the node is protected, and if not why."""
        ...

    def status(self) -> Mapping[str, Any]:
        """Return what there is to know, as JSON has it: dicts, lists, texts, numbers, booleans and None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = _PLAIN


class Server:
    """A running server; `port` is the one it got."""

    def __init__(self, server: "_Server") -> None:
        self.port: int = server.server_address[1]
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, args=(server.poll_seconds,), name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; requests that are being answered end with their connections."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def serve(
    address: Address, views: Views, *, connections: int = _CONNECTIONS, seconds: float = _SECONDS
) -> Server:
    """Listen and serve in threads of its own, or raise a `ConfigError` that says what to change."""
    try:
        return Server(_Server(address, views, connections, seconds))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"metrics address {address} is in use: stop what listens there, "
                "or choose another with --metrics-address"
            ) from error
        raise ConfigError(
            f"metrics address {address} cannot be used ({error.strerror}): "
            "choose another with --metrics-address"
        ) from error


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that sleeps must not hold up the agent's end

    def __init__(self, address: Address, views: Views, connections: int, seconds: float) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.views = views
        self.poll_seconds = min(0.2, seconds / 10)  # how late an overdue connection is noticed
        self._connections = connections
        self._seconds = seconds
        self._open: dict[Any, float] = {}
        self._guard = threading.Lock()
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the DNS for our name and may wait for long.
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            full = len(self._open) >= self._connections
            if not full:
                self._open[request] = time.monotonic() + self._seconds
        if full:
            self.shutdown_request(request)
        else:
            request.settimeout(self._seconds)
            super().process_request(request, client_address)

    def service_actions(self) -> None:
        """End connections that use up their time byte by byte; called with every poll."""
        now = time.monotonic()
        with self._guard:
            for request, end in self._open.items():
                if now >= end:
                    with suppress(OSError):  # it may have gone by itself
                        request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what ends here is a client that went away or was shut out."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "cloudtaser-ebpf"
    sys_version = ""
    error_content_type = _PLAIN
    error_message_format = "%(code)d %(message)s\n"

    def do_GET(self) -> None:
        self._send(self._answer())

    do_HEAD = do_GET  # noqa: N815 - the base class looks for these names

    def _refuse(self) -> None:
        self._send(_Answer(status=HTTPStatus.METHOD_NOT_ALLOWED, body=b"only GET and HEAD\n"))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _answer(self) -> _Answer:
        views = self.server.views
        try:
            match self.path.partition("?")[0]:
                case "/metrics":
                    content_type, body = views.metrics(self.headers.get("Accept", ""))
                    return _Answer(status=HTTPStatus.OK, body=body, content_type=content_type)
                case "/healthz":
                    return _probe(views.healthy)
                case "/readyz":
                    return _probe(views.ready)
                case "/status":
                    return _json(views.status())
                case _:
                    return _Answer(status=HTTPStatus.NOT_FOUND, body=_PATHS)
        except Exception:  # noqa: BLE001 - an answer is due whatever a view does
            _log.exception("%s could not be answered", self.path)
            return _Answer(status=HTTPStatus.INTERNAL_SERVER_ERROR, body=b"see the agent's log\n")

    def _send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")  # each tells how things stand now
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep no access log: probes come every few seconds."""


def _probe(view: Callable[[], Status]) -> _Answer:
    status = view()
    return _Answer(
        status=HTTPStatus.OK if status.ok else HTTPStatus.SERVICE_UNAVAILABLE,
        body=f"{status.text}\n".encode(),
    )


def _json(content: Mapping[str, Any]) -> _Answer:
    return _Answer(
        status=HTTPStatus.OK,
        body=json.dumps(dict(content), indent=2).encode() + b"\n",
        content_type="application/json",
    )
