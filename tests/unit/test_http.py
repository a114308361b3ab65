import http.client
import json
import socket
import threading
import time
from types import MappingProxyType

import pytest

from agent.errors import ConfigError
from agent.http import Status, serve
from agent.options import Address

ANY_PORT = Address(host="127.0.0.1", port=0)


class Views:
    """A view of an agent that tests can change."""

    def __init__(self):
        self.health = Status(ok=True, text="works")
        self.readiness = Status(ok=False, text="attaching")
        self.facts = {"version": "1.2.3", "ready": True, "errors": []}
        self.accepted = []

    def metrics(self, accept):
        self.accepted.append(accept)
        return "text/plain; version=0.0.4", b"up 1\n"

    def healthy(self):
        return self.health

    def ready(self):
        return self.readiness

    def status(self):
        return self.facts


@pytest.fixture
def views():
    return Views()


@pytest.fixture
def server(views):
    server = serve(ANY_PORT, views, seconds=0.3)
    yield server
    server.close()


@pytest.fixture
def ask(server):
    def ask(path, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    return ask


@pytest.fixture
def connect(server):
    opened = []

    def connect():
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        connection.close()


def is_closed(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_metrics_are_served_in_the_format_asked_for(views, ask):
    status, body, headers = ask("/metrics?name=up", Accept="application/openmetrics-text")

    assert (status, body) == (200, b"up 1\n")
    assert headers["Content-Type"] == "text/plain; version=0.0.4"
    assert views.accepted == ["application/openmetrics-text"]


def test_an_agent_that_works_is_healthy_before_it_is_ready(views, ask):
    assert ask("/healthz")[:2] == (200, b"works\n")
    assert ask("/readyz")[:2] == (503, b"attaching\n")

    views.readiness = Status(ok=True, text="9 vectors enforced")
    views.health = Status(ok=False, text="the ring buffer is gone: é")

    assert ask("/readyz")[:2] == (200, b"9 vectors enforced\n")
    assert ask("/healthz")[:2] == (503, "the ring buffer is gone: é\n".encode())


def test_head_has_no_body(ask):
    status, body, headers = ask("/metrics", "HEAD")

    assert (status, body, headers["Content-Length"]) == (200, b"", "5")


def test_status_is_json_in_the_order_of_the_agent(views, ask):
    views.facts = MappingProxyType({"ready": False, "layers": {"proc-mem": None}, "last error": "é\n\udcff"})

    status, body, headers = ask("/status?pretty")

    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert list(json.loads(body).items()) == list(views.facts.items())
    assert body.isascii()
    assert body.endswith(b"\n}\n")


def test_head_of_status_has_no_body(ask):
    length = str(len(ask("/status")[1]))

    status, body, headers = ask("/status", "HEAD")

    assert (status, body, headers["Content-Length"]) == (200, b"", length)


def test_a_status_that_is_no_json_is_an_answer_and_a_line_in_the_log(views, ask, caplog):
    views.facts = {"ready": {1, 2}}

    assert ask("/status")[:2] == (500, b"see the agent's log\n")
    assert [record.getMessage() for record in caplog.records] == ["/status could not be answered"]


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/status", "/"])
def test_how_things_stand_is_kept_by_no_cache(ask, path):
    assert ask(path)[2]["Cache-Control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(ask, method):
    status, _, headers = ask("/metrics", method)

    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_an_unknown_path_is_told_what_there_is(ask):
    assert ask("/")[:2] == (404, b"try /metrics, /healthz, /readyz or /status\n")


def test_answers_do_not_tell_which_python_this_is(ask):
    assert ask("/healthz")[2]["Server"].strip() == "cloudtaser-ebpf"


def test_a_view_that_fails_is_an_answer_and_a_line_in_the_log(views, ask, caplog):
    del views.readiness

    assert ask("/readyz")[:2] == (500, b"see the agent's log\n")
    assert ask("/healthz")[0] == 200
    assert [record.getMessage() for record in caplog.records] == ["/readyz could not be answered"]


def test_requests_leave_no_log(ask, connect, capfd, caplog):
    ask("/healthz")
    ask("/nowhere")
    connect().close()
    garbage = connect()
    garbage.sendall(b"\x16\x03\x01\r\n\r\n")

    assert garbage.recv(4096)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_a_client_that_says_nothing_is_shut_out(connect):
    assert is_closed(connect())


def test_a_client_that_speaks_byte_by_byte_is_shut_out(connect):
    connection = connect()
    began = time.monotonic()
    with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):  # noqa: PT012
        while time.monotonic() < began + 5:
            connection.sendall(b"G")
            time.sleep(0.02)


def test_connections_are_bounded_and_come_back(views):
    server = serve(ANY_PORT, views, connections=3, seconds=60)
    address = ("127.0.0.1", server.port)
    held = [socket.create_connection(address, timeout=5) for _ in range(3)]
    with socket.create_connection(address, timeout=5) as refused:
        assert is_closed(refused)

    for connection in held:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert connection.makefile("rb").read().endswith(b"works\n")
        connection.close()
    server.close()


def test_a_port_in_use_is_told_with_what_to_change(server, views):
    taken = Address(host="127.0.0.1", port=server.port)

    with pytest.raises(ConfigError) as caught:
        serve(taken, views)

    assert str(caught.value) == (
        f"metrics address {taken} is in use: stop what listens there, "
        "or choose another with --metrics-address"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_told_with_what_to_change(views, host):
    with pytest.raises(ConfigError, match=rf"metrics address {host}:0 cannot be used \(.*\): choose another"):
        serve(Address(host=host, port=0), views)


def test_a_closed_server_leaves_no_thread_and_no_port(views):
    before = set(threading.enumerate())
    server = serve(ANY_PORT, views)
    port = server.port
    server.close()

    assert set(threading.enumerate()) == before
    serve(Address(host="127.0.0.1", port=port), views).close()


def test_a_sleeping_client_does_not_hold_up_the_end(views):
    server = serve(ANY_PORT, views, seconds=60)
    with socket.create_connection(("127.0.0.1", server.port)):
        began = time.monotonic()
        server.close()

    assert time.monotonic() - began < 5


def test_ipv6_can_be_served(views):
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    try:
        server = serve(Address(host="::1", port=0), views)
    except ConfigError as error:
        pytest.skip(str(error))
    with socket.create_connection(("::1", server.port), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")

        assert connection.recv(4096).startswith(b"HTTP/1.0 200")
    server.close()
