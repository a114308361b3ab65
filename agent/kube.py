"""The few calls to the API server that the agent makes, and every foreign error as a `KubeError`.

The official client is imported by `connect` alone, since it takes some 20 MiB and a node without Kubernetes
has no use for it. It brings the configuration, the credentials with their renewal, and the connections. Its
models and generated calls would take as much again and are left aside: a pod stays the JSON that it is.

It never tries again by itself: its callers know when.
"""

import json
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode

from agent import __version__
from agent.errors import KubeError

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PODS = "/api/v1/pods"
_BULK = (
    *("managedFields", "ownerReferences"),
    *("containers", "initContainers", "ephemeralContainers", "volumes", "env", "volumeMounts"),
    *("affinity", "conditions", "tolerations", "state", "lastState"),
)
_PAGE = 500  # pods, as the official clients ask for; a node has some hundred
_CONNECTIONS = 4  # kept open; a watch and three threads that write now and then
_READ_BYTES = 65_536
_EVENT_BYTES = 8 << 20  # an object in etcd has 1.5 MiB at most
_TEXT_CHARACTERS = 300  # of what the API server says

# A peer that vanished without a word is noticed after a minute.
_KEEP_ALIVE = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How many seconds to wait: for a connection, for an answer, for more of a watch that says nothing.

    A watch is sent a bookmark each minute or so, even where nothing changes.
    """

    connect: float = 5.0
    answer: float = 15.0
    silence: float = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodList:
    """The pods of a node as the API has them, without their bulk, and where a watch goes on from."""

    resource_version: str
    pods: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """What a watch tells: ADDED, MODIFIED or DELETED with a pod, BOOKMARK with a resource version only."""

    type: str
    object: dict[str, Any]


def connect(
    kubeconfig: Path | None,
    *,
    patience: Patience = Patience(),
    account: Path = _ACCOUNT,
    environ: Mapping[str, str] = os.environ,
) -> "Client":
    """Take the way to the API server from a file, or from the pod's own service account if there is none.

    Nothing is sent yet. Raises a `KubeError` that says what to change.
    """
    import urllib3  # noqa: PLC0415 - comes with the client, see above
    from kubernetes import client, config  # noqa: PLC0415
    from kubernetes.config.incluster_config import InClusterConfigLoader  # noqa: PLC0415

    configuration = client.Configuration()
    configuration.retries = False
    configuration.connection_pool_maxsize = _CONNECTIONS
    configuration.socket_options = list(_KEEP_ALIVE)
    try:
        if kubeconfig is None:
            loader = InClusterConfigLoader(  # type: ignore[no-untyped-call]
                token_filename=str(account / "token"), cert_filename=str(account / "ca.crt"), environ=environ
            )
            loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
        else:
            # The client takes a file that is missing for one that is empty.
            kubeconfig.open("rb").close()
            config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
            )
        api = client.ApiClient(configuration)
    except Exception as error:
        raise KubeError(_not_configured(kubeconfig, error)) from error
    timeout = urllib3.Timeout(connect=patience.connect, read=patience.answer)
    return Client(api, timeout, patience.silence, urllib3.exceptions.HTTPError)


class Client:
    """Calls to one API server; all raise `KubeError` only, and any thread may make them."""

    def __init__(self, api: Any, timeout: Any, silence: float, transport_error: type[Exception]) -> None:
        """Use the official client's `api`, whose connections raise `transport_error`; see `connect`."""
        self.host: str = api.configuration.host
        self._api = api
        self._timeout = timeout
        self._silence = silence
        self._foreign = (transport_error, OSError, ValueError)

    def list_pods(self, node: str, resource_version: str = "0") -> PodList:
        """List the pods of a node.

        Version "0" is what the API server has in memory, which spares etcd when every node asks at once and
        may be old; "" is the latest there is, which a watch that was told 410 must ask for.
        """
        query = {"fieldSelector": f"spec.nodeName={node}", "limit": str(_PAGE)}
        page = self._get("list pods", _PODS, query | {"resourceVersion": resource_version}, _without_bulk)
        version, pods = _version(page), _items(page)
        while token := page["metadata"].get("continue"):
            page = self._get("list pods", _PODS, query | {"continue": token}, _without_bulk)
            pods.extend(_items(page))
        return PodList(resource_version=version, pods=pods)

    def watch_pods(self, node: str, resource_version: str, seconds: float = 300) -> "PodStream":
        """Begin to watch the pods of a node from a version on, for so many seconds at most."""
        query = {
            "fieldSelector": f"spec.nodeName={node}",
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(int(seconds)),
        }
        response = self._request("watch pods", "GET", _PODS, query)
        return PodStream(response, self.host, self._silence, self._foreign)

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        """Store a new Event of core/v1."""
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/events"
        self._body(self._request("create an Event", "POST", path, body=body))

    def patch_event(self, namespace: str, name: str, body: Mapping[str, Any]) -> None:
        """Merge `body` into an Event."""
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/events/{quote(name, safe='')}"
        self._body(self._request("patch an Event", "PATCH", path, body=body))

    def get_node(self, name: str) -> dict[str, Any]:
        """Return the node as the API has it."""
        return self._get("read the node", f"/api/v1/nodes/{quote(name, safe='')}", {})

    def patch_node(self, name: str, body: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Change the node: a list is a JSON patch, all of it or nothing; a mapping is merged."""
        path = f"/api/v1/nodes/{quote(name, safe='')}"
        self._body(self._request("change the node", "PATCH", path, body=body))

    def close(self) -> None:
        """Close the connections that wait for a next call."""
        self._api.close()

    def _get(
        self,
        what: str,
        path: str,
        query: Mapping[str, str],
        keep: Callable[[dict[str, Any]], Any] | None = None,
    ) -> dict[str, Any]:
        text = self._body(self._request(what, "GET", path, query))
        with suppress(ValueError, RecursionError):
            answer = json.loads(text, object_hook=keep)
            if isinstance(answer, dict) and isinstance(answer.get("metadata"), dict):
                return answer
        raise KubeError(f"what answers at {self.host} is no API server: it was asked to {what}")

    # Return an answer that says that all is well, its body unread.
    def _request(
        self,
        what: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:
        headers = self._headers()
        if body is not None:
            headers["Content-Type"] = _content_type(method, body)
        try:
            response = self._api.rest_client.pool_manager.request(
                method,
                f"{self.host}{path}" + (f"?{urlencode(query)}" if query else ""),
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=self._timeout,
                preload_content=False,
                redirect=False,
            )
        except self._foreign as error:
            raise _unreachable(self.host, error) from error
        if not 200 <= response.status <= 299:
            raise _refusal(what, response.status, self._body(response))
        return response

    def _body(self, response: Any) -> bytes:
        try:
            return bytes(response.data)
        except self._foreign as error:
            raise _unreachable(self.host, error) from error

    # The service account's token changes every hour or so: asking for it reads it again when it is due.
    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": f"cloudtaser-ebpf/{__version__}"}
        try:
            settings = self._api.configuration.auth_settings().values()
        except Exception as error:
            raise KubeError(
                f"the credentials for the API server cannot be renewed: {_line(error)}"
            ) from error
        for setting in settings:
            value = str(setting["value"] or "").strip()
            if not (value.isascii() and value.isprintable()):
                # Below here it would be an error that quotes the token.
                raise KubeError("the token for the API server is none: it is not on one line of plain ASCII")
            headers[setting["key"]] = value
        return headers


class PodStream:
    """An open watch: its events, one after the other, in a `with` that ends it.

    Iteration ends with the watch, in order or because nothing has come for too long; it raises a `KubeError`
    where the connection breaks or the API server sends an error, which has status 410 if the version is gone.
    """

    def __init__(
        self, response: Any, host: str, silence: float, foreign: tuple[type[Exception], ...]
    ) -> None:
        """Read from an answer of urllib3's whose body is still unread; see `Client.watch_pods`."""
        self._response = response
        self._host = host
        self._foreign = foreign
        # A second descriptor, for `interrupt` to use whatever becomes of the first.
        self._wire = socket.socket(fileno=os.dup(response.fileno()))
        # Where the answer says that the connection ends with it, the socket is out of reach.
        if response.connection is not None and response.connection.sock is not None:
            response.connection.sock.settimeout(silence)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the watch."""
        self._wire.close()
        self._response.close()
        self._response.release_conn()

    def interrupt(self) -> None:
        """Break the connection, from any thread: who reads from it gets a `KubeError` at once."""
        with suppress(OSError):  # it has gone by itself
            self._wire.shutdown(socket.SHUT_RDWR)

    def __iter__(self) -> Iterator[WatchEvent]:
        """Yield events as they come."""
        for line in self._lines():
            event = _event(line)
            if event is None:
                raise KubeError(f"what answers at {self._host} sends no events of a watch")
            if event.type == "ERROR":
                raise _error_event(event.object)
            yield event

    def _lines(self) -> Iterator[bytes]:
        begun = b""
        try:
            for part in self._response.stream(_READ_BYTES, decode_content=False):
                *lines, rest = part.split(b"\n")
                if lines:
                    yield begun + lines[0]
                    yield from lines[1:]
                    begun = b""
                begun += rest
                if len(begun) > _EVENT_BYTES:
                    raise KubeError(f"what answers at {self._host} sends lines without an end")
        except self._foreign as error:
            if not _is_silence(_cause(error)):
                raise _unreachable(self._host, error) from error


def _version(page: Mapping[str, Any]) -> str:
    return str(page["metadata"].get("resourceVersion", ""))


def _items(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    items = page.get("items")
    return [each for each in items if isinstance(each, dict)] if isinstance(items, list) else []


# Most of a pod is of no use here. Left out while it is parsed: 250 pods of 10 KB would leave 9 MiB behind
# that nobody needs (make bench).
def _without_bulk(parsed: dict[str, Any]) -> dict[str, Any]:
    for key in _BULK:
        parsed.pop(key, None)
    return parsed


def _content_type(method: str, body: object) -> str:
    if method == "POST":
        return "application/json"
    return "application/merge-patch+json" if isinstance(body, Mapping) else "application/json-patch+json"


def _event(line: bytes) -> WatchEvent | None:
    try:
        event = json.loads(line)
        kind, object_ = event["type"], event["object"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    known = isinstance(kind, str) and isinstance(object_, dict)
    return WatchEvent(type=kind, object=object_) if known else None


def _error_event(status: Mapping[str, Any]) -> KubeError:
    code = status.get("code")
    return KubeError(
        f"the API server ended the watch of pods ({code}): {_line(status.get('message'))}",
        status=code if isinstance(code, int) else None,
    )


def _not_configured(kubeconfig: Path | None, error: Exception) -> str:
    if kubeconfig is None:
        return (
            f"no service account to ask the API server with ({_line(error)}): "
            "run as a pod that mounts its token, or name a file with --kubeconfig"
        )
    if isinstance(error, OSError):
        return f"kubeconfig {kubeconfig} cannot be read ({_reason(error)}): correct --kubeconfig"
    return f"kubeconfig {kubeconfig} is not understood ({_line(error)}): correct the file"


def _refusal(what: str, status: int, body: bytes) -> KubeError:
    message = ""
    with suppress(ValueError, RecursionError, AttributeError):
        message = _line(json.loads(body).get("message"))
    if status == 401:
        text = (
            f"the API server does not know this agent and did not {what} (401): its token is not valid, "
            "see the ServiceAccount of daemonset.yaml"
        )
    elif status == 403 and "being terminated" not in message:
        text = f"the API server refuses to {what} (403): apply the ClusterRole of daemonset.yaml"
    else:
        text = f"the API server did not {what} ({status})" + (f": {message}" if message else "")
    return KubeError(text, status=status)


def _unreachable(host: str, error: Exception) -> KubeError:
    return KubeError(f"the API server at {host} cannot be reached: {_reason(error)}")


# The innermost exception is what happened. The others are who passed it on, in one of two ways.
def _cause(error: BaseException) -> BaseException:
    while True:
        inner = error.__cause__ or next(reversed(error.args), None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


# A socket's own timeout has no number, unlike the kernel's that gave up on the peer.
def _is_silence(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) and error.errno is None


def _reason(error: Exception) -> str:
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({_line(cause.verify_message)})"
    if _is_silence(cause):
        return "it does not answer"
    if isinstance(cause, OSError) and cause.strerror:
        return _line(cause.strerror.lower())
    return "the connection broke" if isinstance(cause, HTTPException) else _line(cause)


# What others say, on one line with an end.
def _line(said: object) -> str:
    text = " ".join(str(said or "").split())
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= _TEXT_CHARACTERS else f"{shown[:_TEXT_CHARACTERS]}…"
