import datetime as dt
import json
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import urllib3

from agent.errors import AgentError, KubeError
from agent.kube import Patience, connect
from tests.api_server import NODE, ApiServer, node, pod

A = "a" * 64
REQUEST_SECONDS = 5.0
PATIENCE = Patience(connect=REQUEST_SECONDS, answer=REQUEST_SECONDS, silence=REQUEST_SECONDS)
IMPATIENT = Patience(connect=REQUEST_SECONDS, answer=0.1, silence=0.1)


@pytest.fixture
def connected(server, tmp_path):
    made = []

    def connected(patience=PATIENCE):
        client = connect(server.write_kubeconfig(tmp_path / "kubeconfig"), patience=patience)
        made.append(client)
        return client

    yield connected
    for client in made:
        client.close()


@pytest.fixture
def client(connected):
    return connected()


@contextmanager
def refused(status, text):
    with pytest.raises(KubeError) as caught:
        yield
    assert str(caught.value) == text
    assert caught.value.status == status


# Whoever does not speak HTTP as it should: the bytes that it answers one connection with.
@contextmanager
def answering(tmp_path, *answers):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = connect(kubeconfig(tmp_path, url), patience=PATIENCE)
        yield client, url
        client.close()
        thread.join()


def kubeconfig(tmp_path, url, **user):
    path = tmp_path / "config"
    path.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "c", "user": user}],
            }
        )
    )
    return path


def chunk(text):
    return b"%x\r\n%b\r\n" % (len(text), text)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def names(pods):
    return [each["metadata"]["name"] for each in pods]


def test_the_pods_of_a_node_are_listed(server, client):
    server.put_pod(pod("here", containers={"app": A}))
    server.put_pod(pod("elsewhere", node="another"))

    listed = client.list_pods(NODE)

    assert names(listed.pods) == ["here"]
    assert listed.resource_version == str(server.version)
    assert listed.pods[0]["status"]["containerStatuses"][0]["containerID"] == f"containerd://{A}"


def test_a_list_says_what_it_wants(server, client):
    client.list_pods(NODE)
    client.list_pods(NODE, "")

    (first, second) = server.requests
    assert (first.method, first.path) == ("GET", "/api/v1/pods")
    assert first.query == {"fieldSelector": "spec.nodeName=node-1", "limit": "500", "resourceVersion": "0"}
    assert "resourceVersion" not in second.query
    assert first.headers["authorization"] == "Bearer a-token"
    assert first.headers["user-agent"].startswith("cloudtaser-ebpf/")


def test_a_long_list_comes_in_pages_of_one_version(tmp_path):
    with ApiServer(page=2) as server:
        for number in range(5):
            server.put_pod(pod(f"p{number}"))
        version = server.version
        client = connect(server.write_kubeconfig(tmp_path / "kubeconfig"))

        listed = client.list_pods(NODE)
        client.close()

        assert names(listed.pods) == ["p0", "p1", "p2", "p3", "p4"]
        assert listed.resource_version == str(version)
        assert [each.query.get("continue") is not None for each in server.requests] == [False, True, True]


def test_a_page_that_is_too_old_is_an_error_with_its_status(tmp_path):
    with ApiServer(page=1) as server:
        for number in range(2):
            server.put_pod(pod(f"p{number}"))
        client = connect(server.write_kubeconfig(tmp_path / "kubeconfig"))
        server.hold(lambda request: "continue" in request.query)
        caught = []

        def read():
            with pytest.raises(KubeError) as error:
                client.list_pods(NODE)
            caught.append(error.value)

        thread = threading.Thread(target=read)
        thread.start()
        server.wait_for_requests(2)
        server.compact()
        server.release()
        thread.join()
        client.close()

        assert caught[0].status == 410


def test_who_last_wrote_which_field_is_left_out(server, client):
    raw = pod("web")
    raw["metadata"]["managedFields"] = [{"manager": "kubelet"}]
    server.put_pod(raw)

    assert "managedFields" not in client.list_pods(NODE).pods[0]["metadata"]


def test_a_watch_tells_what_changes(server, client):
    web = pod("web")
    version = client.list_pods(NODE).resource_version
    with client.watch_pods(NODE, version, seconds=17) as stream:
        server.put_pod(web)
        server.put_pod(pod("elsewhere", node="another"))
        server.put_pod(web | {"spec": {"nodeName": NODE, "hostPID": True}})
        server.delete_pod(web["metadata"]["uid"])
        server.send_bookmarks()
        server.end_watches()
        events = list(stream)

    assert [each.type for each in events] == ["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    assert events[1].object["spec"]["hostPID"] is True
    assert events[-1].object["metadata"]["resourceVersion"] == str(server.version)
    assert server.requests[-1].query == {
        "fieldSelector": "spec.nodeName=node-1",
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": version,
        "timeoutSeconds": "17",
    }


def test_events_may_come_in_pieces_and_together(tmp_path):
    def event(kind):
        return b'{"type": "%b", "object": {"kind": "Pod"}}\n' % kind

    text = event(b"ADDED") + event(b"MODIFIED") + event(b"DELETED")
    parts = [text[:5], text[5:60], text[60:], event(b"ADDED"), b'{"type": "begun and never']
    body = b"".join(chunk(part) for part in parts)
    with (
        answering(tmp_path, CHUNKED + body + b"0\r\n\r\n") as (client, _),
        client.watch_pods(NODE, "1") as stream,
    ):
        assert [each.type for each in stream] == ["ADDED", "MODIFIED", "DELETED", "ADDED"]


@pytest.mark.parametrize("in_stream", [False, True])
def test_a_version_that_is_gone_is_an_error_with_its_status(server, client, in_stream):
    version = client.list_pods(NODE).resource_version
    server.gone_in_stream = in_stream
    server.compact()

    def watched():
        with client.watch_pods(NODE, version) as stream:
            return list(stream)

    with pytest.raises(KubeError, match="too old resource version") as caught:
        watched()

    assert caught.value.status == 410


def test_a_watch_can_be_told_that_its_version_is_gone(server, client):
    with client.watch_pods(NODE, "0") as stream:
        server.expire_watches()
        with pytest.raises(KubeError, match=r"^the API server ended the watch of pods \(410\)") as caught:
            list(stream)

    assert caught.value.status == 410


def test_an_error_without_a_code_has_no_status(server, client):
    with client.watch_pods(NODE, "0") as stream:
        server.send({"type": "ERROR", "object": {}})
        with refused(None, "the API server ended the watch of pods (None): "):
            list(stream)


def test_a_watch_that_breaks_is_an_error(server, client):
    with client.watch_pods(NODE, "0") as stream:
        server.put_pod(pod("web"))
        events = iter(stream)
        assert next(events).type == "ADDED"
        server.drop_connections()
        with refused(None, f"the API server at {server.url} cannot be reached: Response ended prematurely"):
            next(events)


def test_a_watch_ends_when_it_has_said_nothing_for_too_long(server, connected):
    client = connected(Patience(connect=REQUEST_SECONDS, answer=REQUEST_SECONDS, silence=0.1))
    server.frozen = True

    with client.watch_pods(NODE, "0") as stream:
        assert list(stream) == []


def test_a_watch_can_be_interrupted_from_another_thread(server, client):
    with client.watch_pods(NODE, "0") as stream:
        server.put_pod(pod("web"))
        events = iter(stream)
        next(events)
        interrupter = threading.Thread(target=stream.interrupt)
        interrupter.start()
        with pytest.raises(KubeError, match="Response ended prematurely"):
            next(events)
        interrupter.join()
        server.drop_connections()
        stream.interrupt()
    stream.interrupt()


@pytest.mark.parametrize("head", [b"", b"Connection: close\r\n"])
def test_a_watch_without_a_body_ends(tmp_path, head):
    with (
        answering(tmp_path, b"HTTP/1.1 204 No Content\r\n%b\r\n" % head) as (client, _),
        client.watch_pods(NODE, "1") as stream,
    ):
        assert list(stream) == []
        stream.interrupt()


@pytest.mark.parametrize(
    "line",
    [
        b"<html>\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b"[]\n",
        b"7\n",
        b'{"type": "ADDED"}\n',
        b'{"type": 5, "object": {}}\n',
        b'{"type": "ADDED", "object": []}\n',
    ],
)
def test_what_is_no_event_is_an_error(server, client, line):
    with client.watch_pods(NODE, "0") as stream:
        server.send(line)
        with refused(None, f"what answers at {server.url} sends no events of a watch"):
            list(stream)


def test_a_line_has_an_end(server, client):
    with client.watch_pods(NODE, "0") as stream:
        server.send(b"x" * (9 << 20))
        with refused(None, f"what answers at {server.url} sends lines without an end"):
            list(stream)


def test_events_are_created_and_patched(server, client):
    client.create_event("shop", {"metadata": {"name": "web.1", "namespace": "shop"}, "count": 1})
    client.patch_event("shop", "web.1", {"count": 2, "message": None})

    assert server.events["shop", "web.1"]["count"] == 2
    assert [(each.method, each.path) for each in server.requests] == [
        ("POST", "/api/v1/namespaces/shop/events"),
        ("PATCH", "/api/v1/namespaces/shop/events/web.1"),
    ]
    with pytest.raises(KubeError, match=r"^the API server did not patch an Event \(404\): events") as caught:
        client.patch_event("shop", "a/b?c", {})
    assert caught.value.status == 404
    assert server.requests[-1].path == "/api/v1/namespaces/shop/events/a%2Fb%3Fc"


def test_a_node_is_read_and_changed(server, client):
    server.put_node(node("n", labels={"a/b": "old"}))

    client.patch_node("n", {"metadata": {"labels": {"c": "d"}}})
    client.patch_node("n", [{"op": "replace", "path": "/metadata/labels/a~1b", "value": "new"}])

    assert client.get_node("n")["metadata"]["labels"] == {"a/b": "new", "c": "d"}
    assert [each.headers.get("content-type") for each in server.requests] == [
        "application/merge-patch+json",
        "application/json-patch+json",
        None,
    ]


def test_a_patch_that_does_not_fit_is_an_error_with_its_status(server, client):
    server.put_node(node("n"))

    with pytest.raises(KubeError) as caught:
        client.patch_node("n", [{"op": "test", "path": "/metadata/name", "value": "another"}])
    assert caught.value.status == 422
    with pytest.raises(KubeError) as caught:
        client.patch_node("n", {"metadata": {"resourceVersion": "1"}})
    assert caught.value.status == 409


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda client: client.list_pods(NODE), "list pods"),
        (lambda client: client.watch_pods(NODE, "0"), "watch pods"),
        (lambda client: client.create_event("ns", {}), "create an Event"),
        (lambda client: client.patch_event("ns", "e", {}), "patch an Event"),
        (lambda client: client.get_node("n"), "read the node"),
        (lambda client: client.patch_node("n", {}), "change the node"),
    ],
)
def test_a_refusal_says_what_to_change(server, client, call, what):
    server.fail(403, message='pods is forbidden: User "u" cannot list resource "pods"')
    with refused(403, f"the API server refuses to {what} (403): apply the ClusterRole of daemonset.yaml"):
        call(client)

    server.fail(401)
    with pytest.raises(KubeError, match="see the ServiceAccount of daemonset") as caught:
        call(client)
    assert caught.value.status == 401

    server.fail(500, message="etcd is\n\x1bsad")
    with refused(500, f"the API server did not {what} (500): etcd is ?sad"):
        call(client)

    server.refuse()
    with refused(None, f"the API server at {server.url} cannot be reached: connection refused"):
        call(client)
    assert len(server.requests) == 3  # nothing is tried again here


def test_a_namespace_that_goes_is_no_lack_of_rights(server, client):
    server.fail(403, message="unable to create new content in namespace x because it is being terminated")

    with pytest.raises(KubeError, match=r"\(403\): unable to create new content .* being terminated$"):
        client.create_event("x", {})


def test_what_the_api_server_says_has_an_end(server, client):
    server.fail(503, message="x" * 1000)

    with refused(503, f"the API server did not list pods (503): {'x' * 300}…"):
        client.list_pods(NODE)


@pytest.mark.parametrize("body", [b"", b"<html>busy</html>", b"[]", b"[" * 100_000, b"{}"])
def test_a_proxy_answers_as_it_likes(tmp_path, body):
    answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with (
        answering(tmp_path, answer) as (client, _),
        refused(502, "the API server did not list pods (502)"),
    ):
        client.list_pods(NODE)


@pytest.mark.parametrize(
    "body", [b"", b"<html>login</html>", b"[]", b"{}", b'{"metadata": 5}', b"[" * 100_000]
)
def test_what_is_no_answer_of_an_api_server_is_an_error(tmp_path, body):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with (
        answering(tmp_path, answer) as (client, url),
        refused(None, f"what answers at {url} is no API server: it was asked to list pods"),
    ):
        client.list_pods(NODE)


@pytest.mark.parametrize("items", [None, 5, [None, {"metadata": 5}, {}]])
def test_a_list_may_be_anything(tmp_path, items):
    body = json.dumps({"metadata": {}, "items": items}).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with answering(tmp_path, answer) as (client, _):
        listed = client.list_pods(NODE)

    assert listed.resource_version == ""
    assert all(isinstance(each, dict) for each in listed.pods)


def test_an_answer_may_break_off(tmp_path):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"
    with (
        answering(tmp_path, answer) as (client, url),
        refused(None, f"the API server at {url} cannot be reached: the connection broke"),
    ):
        client.list_pods(NODE)


def test_what_speaks_no_http_is_an_error(tmp_path):
    with (
        answering(tmp_path, b"SSH-2.0-server\r\n") as (client, url),
        refused(None, f"the API server at {url} cannot be reached: the connection broke"),
    ):
        client.list_pods(NODE)


def test_a_redirection_is_not_followed(tmp_path):
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with answering(tmp_path, answer) as (client, _), refused(302, "the API server did not list pods (302)"):
        client.list_pods(NODE)


def test_an_api_server_that_hangs_is_given_up(server, connected):
    client = connected(IMPATIENT)
    server.hold()

    with refused(None, f"the API server at {server.url} cannot be reached: it does not answer"):
        client.list_pods(NODE)


def test_plain_http_where_tls_is_due_is_an_error(server, tmp_path):
    url = server.url.replace("http:", "https:")
    client = connect(kubeconfig(tmp_path, url), patience=PATIENCE)

    with pytest.raises(KubeError, match=rf"^the API server at {url} cannot be reached: \[ssl"):
        client.list_pods(NODE)


def test_a_certificate_that_is_not_accepted_is_told(server, client, monkeypatch):
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] a long text (_ssl.c:992)")
    error.verify_message = "self-signed certificate"

    def request(*_, **__):
        raise urllib3.exceptions.SSLError(error) from error

    monkeypatch.setattr(client._api.rest_client.pool_manager, "request", request)

    with refused(
        None,
        f"the API server at {server.url} cannot be reached: "
        "its certificate is not accepted (self-signed certificate)",
    ):
        client.list_pods(NODE)


def test_a_kubeconfig_that_does_not_exist_is_named(tmp_path):
    path = tmp_path / "missing"
    with refused(None, f"kubeconfig {path} cannot be read (no such file or directory): correct --kubeconfig"):
        connect(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Invalid kube-config"),
        ("{", "while parsing a flow node"),
        ("a: b", "Invalid kube-config"),
        ("[]", "list indices must be integers"),
        ('{"current-context": "c", "contexts": 5}', "not iterable|Invalid kube-config"),
    ],
)
def test_a_kubeconfig_that_is_none_says_so(tmp_path, text, reason):
    path = tmp_path / "config"
    path.write_text(text)

    with pytest.raises(
        KubeError, match=rf"^kubeconfig {path} is not understood \(.*({reason}).*\): corr"
    ) as caught:
        connect(path)

    assert str(caught.value).isprintable()
    assert isinstance(caught.value, AgentError)


@pytest.fixture
def account(tmp_path):
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("first")
    (folder / "ca.crt").write_text("a certificate")
    return folder


IN_CLUSTER = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_a_pod_asks_with_its_service_account(account):
    client = connect(None, account=account, environ=IN_CLUSTER)

    assert client.host == "https://10.0.0.1:443"
    assert client._headers()["authorization"] == "bearer first"


def test_a_token_is_read_again_as_it_is_renewed(account, monkeypatch):
    client = connect(None, account=account, environ=IN_CLUSTER)
    (account / "token").write_text("second")
    assert client._headers()["authorization"] == "bearer first"

    later = dt.datetime.now() + dt.timedelta(minutes=2)  # noqa: DTZ005 - as the client has it

    class Later(dt.datetime):
        @classmethod
        def now(cls, tz=None):  # noqa: ARG003
            return later

    monkeypatch.setattr("kubernetes.config.incluster_config.datetime.datetime", Later)
    assert client._headers()["authorization"] == "bearer second"

    (account / "token").unlink()
    later += dt.timedelta(minutes=2)
    with pytest.raises(
        KubeError, match=r"^the credentials for the API server cannot be renewed: .*No such file"
    ):
        client.list_pods(NODE)


def test_a_token_may_end_its_line(account):
    (account / "token").write_text("first\n")

    client = connect(None, account=account, environ=IN_CLUSTER)

    assert client._headers()["authorization"] == "bearer first"


@pytest.mark.parametrize("token", ["sec\nret", "sec\x00ret", "secrét"])
def test_a_token_that_is_none_is_not_shown(account, token):
    (account / "token").write_text(token)
    client = connect(None, account=account, environ=IN_CLUSTER)

    with refused(None, "the token for the API server is none: it is not on one line of plain ASCII"):
        client.list_pods(NODE)


@pytest.mark.parametrize(
    ("missing", "environ", "reason"),
    [
        (None, {}, "Service host/port is not set."),
        ("token", IN_CLUSTER, "Service token file does not exist."),
        ("ca.crt", IN_CLUSTER, "Service certification file does not exist."),
    ],
)
def test_who_is_no_pod_is_told_what_to_do(account, missing, environ, reason):
    if missing:
        (account / missing).unlink()

    with refused(
        None,
        f"no service account to ask the API server with ({reason}): "
        "run as a pod that mounts its token, or name a file with --kubeconfig",
    ):
        connect(None, account=account, environ=environ)


def test_without_kubernetes_its_client_is_not_loaded():
    script = "import sys, agent.kube, agent.pod_watch; print({'kubernetes', 'urllib3'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
