"""The way to the API server, which need not be there when it is first asked for."""

import threading

import pytest

from agent.connection import Connection
from agent.errors import KubeError
from agent.kube import PodList
from tests.api_server import NODE, node, pod


@pytest.fixture
def kubeconfig(tmp_path):
    return tmp_path / "kubeconfig"


@pytest.fixture
def connection(kubeconfig):
    connection = Connection(kubeconfig)
    yield connection
    connection.close()


def test_every_call_goes_to_the_api_server(server, kubeconfig, connection):
    server.write_kubeconfig(kubeconfig)
    server.put_node(node())
    stored = server.put_pod(pod())
    event = {"metadata": {"name": "web.1", "namespace": "default"}, "count": 1}

    listed = connection.list_pods(NODE, "0")
    with connection.watch_pods(NODE, "1000", 5) as stream:
        first = next(iter(stream))
    connection.create_event("default", event)
    connection.patch_event("default", "web.1", {"count": 2})
    connection.patch_node(NODE, [{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}])

    assert [each["metadata"]["uid"] for each in listed.pods] == [stored["metadata"]["uid"]]
    assert (first.type, first.object["metadata"]["name"]) == ("ADDED", "web")
    assert server.events[("default", "web.1")]["count"] == 2
    assert connection.get_node(NODE)["metadata"]["labels"] == {"a": "b"}


def test_a_file_that_comes_late_is_taken_then(server, kubeconfig, connection):
    for _ in range(2):
        with pytest.raises(KubeError, match=f"^kubeconfig {kubeconfig} cannot be read"):
            connection.list_pods(NODE, "0")

    server.write_kubeconfig(kubeconfig)

    assert connection.list_pods(NODE, "0").pods == []


def test_without_a_file_it_is_the_service_accounts(monkeypatch):
    asked = []

    def no_account(kubeconfig):
        asked.append(kubeconfig)
        raise KubeError("no service account")

    monkeypatch.setattr("agent.connection.connect", no_account)

    with pytest.raises(KubeError, match=r"^no service account$"):
        Connection(None).get_node(NODE)
    assert asked == [None]


def test_it_closes_what_is_open_and_nothing_else():
    Connection(None).close()


class Client:
    """What is connected to, and how often it was closed."""

    closed = 0

    def list_pods(self, _node, _version):
        return PodList(resource_version="1", pods=[])

    def close(self):
        self.closed += 1


def test_threads_that_ask_at_once_connect_once(monkeypatch):
    made: list[Client] = []
    both = threading.Barrier(2)

    def connect(_kubeconfig):
        made.append(Client())
        return made[-1]

    monkeypatch.setattr("agent.connection.connect", connect)
    connection = Connection(None)

    def ask():
        both.wait(20)
        connection.list_pods(NODE, "0")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    connection.close()

    assert [client.closed for client in made] == [1]
