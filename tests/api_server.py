"""An API server of the tests' own: pods, events and nodes over real HTTP, and every way to misbehave.

    with ApiServer() as server:
        server.put_pod(pod("web", containers={"app": "0" * 64}))
        client = connect(server.write_kubeconfig(tmp_path / "kubeconfig"))

What it knows of Kubernetes is what an agent can see: resource versions, paging, watches with bookmarks and
their history that ends, patches with their content types, and Status objects as errors.
"""

import base64
import copy
import itertools
import json
import re
import select
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

NODE = "node-1"

_HISTORY = 5000  # changes; who watches from further back is told 410
_LOGGED = 20_000  # requests
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}
_EVENTS_PATH = re.compile(r"/api/v1/namespaces/([^/]+)/events(?:/([^/]+))?")
_NODE_PATH = re.compile(r"/api/v1/nodes/([^/]+)")
_PODS_PATH = "/api/v1/pods"
_HEARTBEAT_SECONDS = 0.05  # how late a watch whose client has gone ends

# An event of a watch, or bytes in its place.
_Sent = dict[str, Any] | bytes
# None: nothing to send at the moment.
_Stream = Generator[_Sent | None, None, None]


def pod(
    name: str = "web",
    *,
    namespace: str = "default",
    uid: str | None = None,
    node: str | None = NODE,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    containers: Mapping[str, str] | None = None,
    init: Mapping[str, str] | None = None,
    ephemeral: Mapping[str, str] | None = None,
    shared_pids: bool = False,
    host_pid: bool = False,
    runtime: str = "containerd",
) -> dict[str, Any]:
    """Build a pod as the API tells it; containers are names and ids, an empty id one that has not started.

    Without a `uid` it gets one that depends on namespace and name alone.
    """
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "uid": uid or str(uuid.uuid5(uuid.NAMESPACE_URL, f"{namespace}/{name}")),
    }
    if labels:
        metadata["labels"] = dict(labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    spec: dict[str, Any] = {"containers": [{"name": each, "image": "image"} for each in containers or {}]}
    if node is not None:
        spec["nodeName"] = node
    if shared_pids:
        spec["shareProcessNamespace"] = True
    if host_pid:
        spec["hostPID"] = True
    status: dict[str, Any] = {"phase": "Running"}
    for key, group in (
        ("initContainerStatuses", init),
        ("containerStatuses", containers),
        ("ephemeralContainerStatuses", ephemeral),
    ):
        if group:
            status[key] = [
                {"name": each, "containerID": f"{runtime}://{id_}"} if id_ else {"name": each}
                for each, id_ in group.items()
            ]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def node(
    name: str = NODE,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    taints: list[dict[str, str]] | None = None,
) -> dict[str, Any]:
    """Build a node as the API tells it; what is None is absent."""
    metadata: dict[str, Any] = {"name": name, "uid": f"uid-of-{name}"}
    if labels is not None:
        metadata["labels"] = dict(labels)
    if annotations is not None:
        metadata["annotations"] = dict(annotations)
    spec = {} if taints is None else {"taints": copy.deepcopy(taints)}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One that arrived, before it was answered; `query` has the last value of each parameter."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any = None

    @property
    def watches(self) -> bool:
        return self.query.get("watch") == "true"


class ApiError(Exception):
    """An answer that is a Status."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": str(self),
            "reason": _REASONS.get(self.status, "Unknown"),
            "code": self.status,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    version: int
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    # A watch with a selector sees a pod appear when it begins to match, and vanish when it ceases to.
    def event(self, selects: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        was = self.before is not None and selects(self.before)
        now = self.after is not None and selects(self.after)
        if now:
            return {"type": "MODIFIED" if was else "ADDED", "object": self.after}
        if was and self.before is not None:
            last = self.before | {
                "metadata": self.before["metadata"] | {"resourceVersion": str(self.version)}
            }
            return {"type": "DELETED", "object": last}
        return None


@dataclass(slots=True, kw_only=True)
class _Failure:
    status: int
    times: int | None  # None: until told otherwise
    method: str | None
    path: str
    watch: bool | None
    message: str

    def applies(self, request: Request) -> bool:
        return (
            self.times != 0
            and self.method in (None, request.method)
            and self.path in request.path
            and self.watch in (None, request.watches)
        )


@dataclass(slots=True, eq=False)
class _Watcher:
    selects: Callable[[dict[str, Any]], bool]
    version: int  # what it has been sent
    bookmarks: bool
    orders: deque[_Sent | None] = field(default_factory=deque)  # events besides; None: end


class ApiServer:
    """Listens on a port of loopback while its context lasts; every method may be called from any thread.

    `events` is by (namespace, name), `nodes` by name, `requests` in the order of arrival. `errors` is what
    went wrong in the server itself: a test that fails for no reason may look there.
    """

    def __init__(self, *, page: int | None = None) -> None:
        """Serve at most `page` pods at once, also to who asks for more."""
        self.nodes: dict[str, dict[str, Any]] = {}
        self.events: dict[tuple[str, str], dict[str, Any]] = {}
        self.requests: deque[Request] = deque(maxlen=_LOGGED)
        self.errors: list[str] = []
        self.gone_in_stream = False  # how a watch from too far back is refused: by an ERROR event, or at once
        self.frozen = False  # streams stay open and say nothing
        self._page = page
        self._changed = threading.Condition()
        self._version = 1000
        self._compacted = 1000
        self._lost = 0  # the last change that an open watch cannot be sent any more
        self._pods: dict[str, dict[str, Any]] = {}
        self._history: deque[_Change] = deque()
        self._pages: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self._page_numbers = itertools.count()
        self._watchers: set[_Watcher] = set()
        self._failures: list[_Failure] = []
        self._answers = threading.Event()
        self._answers.set()
        self._holds: Callable[[Request], bool] = _all
        self._connections: set[socket.socket] = set()
        self._listener: _Listener | None = None
        # Bound and never listening: it keeps the port ours while nobody listens.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._place.close()

    def write_kubeconfig(self, path: Path, *, token: str = "a-token") -> Path:
        """Write a file that leads here, and return its path."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
            "clusters": [{"name": "tests", "cluster": {"server": self.url}}],
            "users": [{"name": "tests", "user": {"token": token}}],
        }
        path.write_text(json.dumps(config))  # which is YAML, too
        return path

    # What there is

    def put_pod(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Create the pod, or replace the one with its uid; return it as stored."""
        with self._changed:
            uid = raw["metadata"]["uid"]
            stored = self._stored(raw)
            self._record(self._pods.get(uid), stored)
            self._pods[uid] = stored
            return copy.deepcopy(stored)

    def delete_pod(self, uid: str) -> None:
        """Delete the pod, or raise a KeyError."""
        with self._changed:
            self._version += 1
            self._record(self._pods.pop(uid), None)

    def pods(self) -> dict[str, dict[str, Any]]:
        """Return every pod by its uid."""
        with self._changed:
            return copy.deepcopy(self._pods)

    def put_node(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Create the node, or replace it; return it as stored."""
        with self._changed:
            stored = self._stored(raw)
            self.nodes[raw["metadata"]["name"]] = stored
            return copy.deepcopy(stored)

    @property
    def version(self) -> int:
        """The latest resource version."""
        with self._changed:
            return self._version

    # How it misbehaves

    def compact(self) -> None:
        """Forget history and pages: a watch or list that goes on from before now is told 410.

        A watch that is open has its changes before it, and goes on.
        """
        with self._changed:
            self._version += 1
            self._compacted = self._version
            self._pages.clear()
            self._changed.notify_all()

    def expire_watches(self) -> None:
        """Compact, and send each open watch the ERROR event 410."""
        self.compact()
        self._order({"type": "ERROR", "object": _expired(0, 0).body()}, None)

    def send(self, event: dict[str, Any] | bytes) -> None:
        """Send each open watch an event of the test's making, or bytes that are none."""
        self._order(event)

    def send_bookmarks(self) -> None:
        """Send each open watch that asked for them a bookmark with the latest version."""
        with self._changed:
            for watcher in self._watchers:
                if watcher.bookmarks:
                    watcher.orders.append(_bookmark(self._version))
            self._changed.notify_all()

    def end_watches(self) -> None:
        """End each open watch in order, as its timeout does."""
        self._order(None)

    def drop_connections(self) -> None:
        """Break every connection there is, in the middle of whatever it carries."""
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):  # it has gone by itself
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.notify_all()

    def refuse(self) -> None:
        """Stop listening and break every connection; what is stored stays, `listen` comes back."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._answers.set()
        self.drop_connections()

    def listen(self) -> None:
        """Listen, again on the same port."""
        self._listener = _Listener(self)

    def fail(
        self,
        status: int,
        times: int | None = 1,
        *,
        method: str | None = None,
        path: str = "",
        watch: bool | None = None,
        message: str = "",
    ) -> None:
        """Answer the next `times` requests (None: all until `heal`) with a Status.

        Only those with this method, with `path` in their path, that watch or do not: None is any.
        """
        with self._changed:
            self._failures.append(
                _Failure(status=status, times=times, method=method, path=path, watch=watch, message=message)
            )

    def heal(self) -> None:
        """Fail no more."""
        with self._changed:
            self._failures.clear()

    def hold(self, holds: Callable[[Request], bool] | None = None) -> None:
        """Accept and answer nothing until `release`, or no such request as `holds` tells."""
        self._holds = holds or _all
        self._answers.clear()

    def release(self) -> None:
        """Answer what was held, and hold no more."""
        self._answers.set()

    # What a test waits for

    def wait_for_watch(self, count: int = 1, *, seconds: float = 20) -> None:
        """Return once at least `count` watches are open."""
        self.wait_until(lambda: len(self._watchers) >= count, seconds=seconds)

    def wait_for_requests(
        self, count: int, *, method: str | None = None, path: str = "", seconds: float = 20
    ) -> None:
        """Return once at least `count` such requests have arrived."""

        def arrived() -> bool:
            found = [each for each in self.requests if method in (None, each.method) and path in each.path]
            return len(found) >= count

        self.wait_until(arrived, seconds=seconds)

    def wait_until(self, holds: Callable[[], bool], *, seconds: float = 20) -> None:
        """Return once `holds` does, which is asked after each request and change."""
        with self._changed:
            if not self._changed.wait_for(holds, seconds):
                raise TimeoutError(f"did not come about within {seconds} s")

    # From here on: the other side of HTTP

    def answer(self, request: Request) -> dict[str, Any] | _Stream:
        """Return the answer's object, or the events of a watch; called by the connection's thread."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        if self._holds(request):
            self._answers.wait()
        with self._changed:
            for failure in self._failures:
                if failure.applies(request):
                    failure.times = None if failure.times is None else failure.times - 1
                    message = failure.message or f"told to fail with {failure.status}"
                    headers = {"Retry-After": "1"} if failure.status in (429, 503) else None
                    raise ApiError(failure.status, message, headers=headers)
            return self._route(request)

    def connected(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.add(connection)

    def disconnected(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    def _route(self, request: Request) -> dict[str, Any] | _Stream:
        if request.path == _PODS_PATH and request.method == "GET":
            return self._watch(request) if request.watches else self._list(request)
        if found := _EVENTS_PATH.fullmatch(request.path):
            return self._event(request, found[1], found[2])
        if found := _NODE_PATH.fullmatch(request.path):
            return self._node(request, found[1])
        raise ApiError(404, f"the server could not find the requested resource {request.path}")

    def _list(self, request: Request) -> dict[str, Any]:
        limit = int(request.query.get("limit", "0")) or None
        if self._page is not None:
            limit = min(self._page, limit or self._page)
        token = request.query.get("continue")
        if token is None:
            selects = _selector(request.query.get("fieldSelector", ""))
            pods = sorted(self._pods.values(), key=_key)
            version, items = self._version, [each for each in pods if selects(each)]
        elif token in self._pages:
            version, items = self._pages[token]
        else:
            raise ApiError(410, "The provided continue parameter is too old")
        metadata = {"resourceVersion": str(version)}
        if limit is not None and len(items) > limit:
            items, rest = items[:limit], items[limit:]
            following = base64.b64encode(f"page {next(self._page_numbers)} &=".encode()).decode()
            self._pages[following] = (version, rest)
            metadata["continue"] = following
        return {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items}

    def _watch(self, request: Request) -> _Stream:
        asked = int(request.query.get("resourceVersion") or 0) or self._version
        if asked < self._compacted and not self.gone_in_stream:
            raise _expired(asked, self._compacted)
        watcher = _Watcher(
            selects=_selector(request.query.get("fieldSelector", "")),
            version=asked,
            bookmarks=request.query.get("allowWatchBookmarks") == "true",
        )
        if asked < self._compacted:
            watcher.version = self._version
            watcher.orders.extend(
                [{"type": "ERROR", "object": _expired(asked, self._compacted).body()}, None]
            )
        seconds = float(request.query.get("timeoutSeconds", "1800"))
        stream = self._stream(watcher, time.monotonic() + seconds)
        next(stream)  # so that it is in `_watchers`, and `close` takes it out
        return stream

    def _stream(self, watcher: _Watcher, end: float) -> _Stream:
        with self._changed:
            self._watchers.add(watcher)
            self._changed.notify_all()
        try:
            yield None
            while time.monotonic() < end:
                events = self._news(watcher)
                yield from itertools.takewhile(lambda each: each is not None, events)
                if None in events:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._has_news(watcher), _HEARTBEAT_SECONDS)
                yield None
        finally:
            with self._changed:
                self._watchers.discard(watcher)
                self._changed.notify_all()

    def _has_news(self, watcher: _Watcher) -> bool:
        return not self.frozen and (watcher.version < self._version or bool(watcher.orders))

    # What to send, and None where the stream ends.
    def _news(self, watcher: _Watcher) -> list[_Sent | None]:
        with self._changed:
            if self.frozen:
                return []
            if watcher.version < self._lost:
                return [{"type": "ERROR", "object": _expired(watcher.version, self._compacted).body()}, None]
            newer = itertools.takewhile(lambda it: it.version > watcher.version, reversed(self._history))
            events = [change.event(watcher.selects) for change in newer]
            news: list[_Sent | None] = [event for event in reversed(events) if event is not None]
            watcher.version = self._version
            news.extend(watcher.orders)
            watcher.orders.clear()
            return news

    def _order(self, *orders: _Sent | None) -> None:
        with self._changed:
            for watcher in self._watchers:
                watcher.orders.extend(orders)
            self._changed.notify_all()

    def _stored(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        self._version += 1
        stored = copy.deepcopy(dict(raw))
        stored["metadata"] = stored["metadata"] | {"resourceVersion": str(self._version)}
        return stored

    def _record(self, before: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
        self._history.append(_Change(version=self._version, before=before, after=after))
        if len(self._history) > _HISTORY:
            self._lost = self._history.popleft().version
            self._compacted = max(self._compacted, self._lost)
        self._changed.notify_all()

    def _event(self, request: Request, namespace: str, name: str | None) -> dict[str, Any]:
        match request.method, name:
            case "POST", None:
                stored = self._stored(request.body)
                metadata = stored["metadata"]
                if metadata.get("namespace", namespace) != namespace or not metadata.get("name"):
                    raise ApiError(400, "the namespace or name of the event does not match the request")
                key = (namespace, metadata["name"])
                if key in self.events:
                    raise ApiError(409, f'events "{key[1]}" already exists')
            case "GET" | "PATCH", str(name):
                key = (namespace, name)
                if key not in self.events:
                    raise ApiError(404, f'events "{name}" not found')
                if request.method == "GET":
                    return self.events[key]
                stored = self._patched(self.events[key], request)
            case _:
                raise ApiError(405, "the server does not allow this method on the requested resource")
        self.events[key] = stored
        self._changed.notify_all()
        return stored

    def _node(self, request: Request, name: str) -> dict[str, Any]:
        if name not in self.nodes:
            raise ApiError(404, f'nodes "{name}" not found')
        match request.method:
            case "GET":
                pass
            case "PATCH":
                self.nodes[name] = self._patched(self.nodes[name], request)
                self._changed.notify_all()
            case _:
                raise ApiError(405, "the server does not allow this method on the requested resource")
        return self.nodes[name]

    def _patched(self, stored: dict[str, Any], request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "")
        match kind, request.body:
            case "application/json-patch+json", list(operations):
                patched = json_patch(stored, operations)
            case "application/merge-patch+json", dict(patch):
                patched = merge_patch(stored, patch)
            case _:
                raise ApiError(415, f"the body of the request was in an unknown format: {kind}")
        if patched["metadata"].get("resourceVersion") != stored["metadata"].get("resourceVersion"):
            raise ApiError(
                409, "the object has been modified; please apply your changes to the latest version"
            )
        return self._stored(patched)


def merge_patch(document: Any, patch: Any) -> Any:
    """Return the document as RFC 7396 changes it."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def json_patch(document: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the document as RFC 6902 changes it, without move and copy; where it cannot, 422 it is."""
    result = copy.deepcopy(document)
    for operation in operations:
        try:
            _apply(result, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ApiError(422, f"the server rejected our request: {operation}: {error!r}") from error
    return result


def _apply(document: dict[str, Any], operation: dict[str, Any]) -> None:
    holder, where = _pointed(document, operation["path"])
    match operation["op"]:
        case "add" if isinstance(holder, list):
            holder.insert(where, copy.deepcopy(operation["value"]))
        case "add":
            holder[where] = copy.deepcopy(operation["value"])
        case "replace":
            holder[where]  # what is not there cannot be replaced
            holder[where] = copy.deepcopy(operation["value"])
        case "remove":
            del holder[where]
        case "test":
            if holder[where] != operation["value"]:
                raise ValueError("testing value failed")
        case other:
            raise ValueError(f"unknown op {other}")


# The object or list that a pointer leads into, and the key or place in it.
def _pointed(document: dict[str, Any], pointer: str) -> tuple[Any, Any]:
    if not pointer.startswith("/"):
        raise ValueError("a pointer begins with /")
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]
    holder: Any = document
    for part in parents:
        holder = holder[int(part)] if isinstance(holder, list) else holder[part]
    if not isinstance(holder, list):
        return holder, last
    where = len(holder) if last == "-" else int(last)
    if not 0 <= where <= len(holder):
        raise IndexError(last)
    return holder, where


def _all(_: Request) -> bool:
    return True


def _key(raw: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = raw["metadata"]
    return (metadata.get("namespace", ""), metadata.get("name", ""), metadata["uid"])


def _expired(asked: int, compacted: int) -> ApiError:
    return ApiError(410, f"too old resource version: {asked} ({compacted})")


def _bookmark(version: int) -> dict[str, Any]:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    return {"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": metadata}}


def _selector(text: str) -> Callable[[dict[str, Any]], bool]:
    if not text:
        return lambda _: True
    name, equals, value = text.partition("=")
    if name != "spec.nodeName" or not equals:
        raise ApiError(400, f"field selector {text} is not known here")
    return lambda raw: raw.get("spec", {}).get("nodeName") == value


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        super().__init__(("127.0.0.1", api.port), _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.01,), name="api-server", daemon=True
        )
        self._thread.start()

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the DNS for our name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.api.connected(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.api.disconnected(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away; the handler keeps what is worse."""


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PATCH = do_GET  # noqa: N815 - the base class looks for these names

    def _handle(self) -> None:
        try:
            self._answer()
        except ApiError as error:
            self._send(error.body(), error.status, error.headers)
        except OSError:
            self.close_connection = True  # who asked has gone, or was dropped
        except Exception as error:
            self.server.api.errors.append(f"{self.command} {self.path}: {error!r}")
            self.close_connection = True
            raise

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length)
        url = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=url.path,
            query={key: values[-1] for key, values in parse_qs(url.query).items()},
            headers={key.lower(): value for key, value in self.headers.items()},
            body=json.loads(text) if text else None,
        )
        answer = self.server.api.answer(request)
        if isinstance(answer, dict):
            self._send(answer, 201 if self.command == "POST" else 200, {})
        else:
            self._send_stream(answer)

    def _send(self, answer: dict[str, Any], status: int, headers: Mapping[str, str]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _send_stream(self, stream: _Stream) -> None:
        with closing(stream):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for sent in stream:
                if sent is None:
                    # A client sends nothing more, so what can be read is the end.
                    if _is_readable(self.connection):
                        self.close_connection = True
                        return
                    continue
                line = sent if isinstance(sent, bytes) else json.dumps(sent).encode() + b"\n"
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep no log: `ApiServer.requests` has it."""


def _is_readable(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
