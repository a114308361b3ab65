"""What the node itself tells: a label with the layer, annotations, and the start-up taint that goes.

Written once the agent is ready and withdrawn when it stops, by a thread of its own that tries again until the
API server takes it: nothing waits for it.
"""

import logging
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agent.errors import KubeError

_log = logging.getLogger(__name__)

LAYER_LABEL = "cloudtaser.io/ebpf-layer"
SELFTEST_ANNOTATION = "cloudtaser.io/ebpf-selftest"
AGENT_ANNOTATION = "cloudtaser.io/ebpf-agent"
TAINT_KEY, TAINT_EFFECT = "cloudtaser.io/agent-not-ready", "NoSchedule"

_BACK_OFF_MAX_SECONDS = 60.0
_RARELY_SECONDS = 300.0
_PATIENCE_SECONDS = 1.0  # at the end
_CONFLICTS = frozenset({409, 422})  # 422: a `test` of the patch did not hold

_Patch = list[dict[str, Any]]


class NodeClient(Protocol):
    """The part of `agent.kube.Client` that reads and writes a node; both raise `KubeError`."""

    def get_node(self, name: str) -> dict[str, Any]:
        """Return the node as the API has it."""
        ...

    def patch_node(self, name: str, body: list[dict[str, Any]]) -> object:
        """Apply a JSON patch, all of it or nothing."""
        ...


class NodeSignals:
    """Keeps the node's label, annotations and taint as this agent has them.

    An agent that is replaced may stop after the next one has written (`maxSurge`): the annotation
    `cloudtaser.io/ebpf-agent` says whose signals they are, and only their owner withdraws them.
    """

    def __init__(
        self,
        client: NodeClient,
        node: str,
        instance: str,
        *,
        random: Callable[[], float] = random.random,
        wait: Callable[[threading.Event, float | None], bool] = threading.Event.wait,
    ) -> None:
        """Sign for `node` as `instance`; `random` is from 0 to 1, `wait` takes an event and seconds."""
        self.errors = 0  # calls that the API server refused or did not answer
        self.status = "waiting: the agent is not ready"
        self._client = client
        self._node = node
        self._instance = instance
        self._random = random
        self._wait = wait
        self._wanted = ("", "")  # layer and result of the self-test
        self._back_off_seconds = 0.0
        self._told: set[int | None] = set()
        self._closing = False
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-signals", daemon=True)

    def ready(self, layer: str, selftest: str) -> None:
        """Sign that the node is protected, and let workloads in; again if something of it has changed."""
        self._wanted = (layer, selftest)
        self.status = "waiting: not written yet"
        self._wake.set()
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """Withdraw label and annotations if that takes no longer than a second.

        The taint does not come back: it keeps workloads from starting before the agent, and these run.
        """
        if self._thread.ident is None:
            return
        self._closing = True
        self._wake.set()
        if self._wait(self._ended, _PATIENCE_SECONDS):
            self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._wake.clear()
                if self._closing:
                    break
                self._wait(self._wake, self._sign())
            self._withdraw()
        finally:
            self._ended.set()

    # Return in how many seconds to try again; None: not until there is news.
    def _sign(self) -> float | None:
        layer, selftest = self._wanted
        labels = {LAYER_LABEL: layer}
        annotations = {SELFTEST_ANNOTATION: selftest, AGENT_ANNOTATION: self._instance}
        try:
            patch = _signing(self._client.get_node(self._node), labels, annotations)
            if patch and not self._closing:
                self._client.patch_node(self._node, patch)
        except KubeError as error:
            return self._failed(error.status, str(error))
        except Exception as error:  # noqa: BLE001 - the thread goes on whatever a client does
            return self._failed(None, f"the node cannot be understood: {error!r}")
        self._told.clear()
        self._back_off_seconds = 0.0
        self.status = "written"
        return None

    def _failed(self, status: int | None, reason: str) -> float:
        self.status = f"waiting: {reason}"
        if status not in _CONFLICTS:
            self.errors += 1
        if status == 403:
            self._tell(status, f"{reason}, or set node-signals: false")
            return self._jittered(_RARELY_SECONDS)
        self._back_off_seconds = min(_BACK_OFF_MAX_SECONDS, self._back_off_seconds * 2 or 1.0)
        # That somebody else changed the node in between is worth telling only where it does not end.
        if status not in _CONFLICTS or self._back_off_seconds == _BACK_OFF_MAX_SECONDS:
            self._tell(status, f"{reason} (tried again until it succeeds)")
        return self._jittered(self._back_off_seconds)

    # Once for each status, until it has worked.
    def _tell(self, status: int | None, text: str) -> None:
        if status not in self._told:
            self._told.add(status)
            _log.warning("label, annotations and taint of node %s are not written: %s", self._node, text)

    def _jittered(self, seconds: float) -> float:
        return seconds * (0.5 + self._random() / 2)

    def _withdraw(self) -> None:
        try:
            patch = _withdrawing(self._client.get_node(self._node), self._instance)
            if patch:
                self._client.patch_node(self._node, patch)
        except Exception as error:  # noqa: BLE001 - nothing depends on it any more
            self.status = f"not withdrawn: {error}"
        else:
            self.status = "withdrawn"


# All of it or nothing, and only if the node is still as it was read: what others write is not lost.
def _signing(node: Mapping[str, Any], labels: Mapping[str, str], annotations: Mapping[str, str]) -> _Patch:
    metadata = node["metadata"]
    changes = [
        *_put("labels", metadata.get("labels") or {}, labels),
        *_put("annotations", metadata.get("annotations") or {}, annotations),
        *_let_workloads_in(node),
    ]
    return [_test("/metadata/resourceVersion", metadata["resourceVersion"]), *changes] if changes else []


def _put(name: str, present: Mapping[str, str], values: Mapping[str, str]) -> _Patch:
    if not present:  # a member cannot be added to what is not there
        return [{"op": "add", "path": f"/metadata/{name}", "value": dict(values)}]
    return [
        {"op": "add", "path": _pointer("metadata", name, key), "value": value}
        for key, value in values.items()
        if present.get(key) != value
    ]


def _let_workloads_in(node: Mapping[str, Any]) -> _Patch:
    taints = node.get("spec", {}).get("taints") or []
    others = [each for each in taints if (each.get("key"), each.get("effect")) != (TAINT_KEY, TAINT_EFFECT)]
    if len(others) == len(taints):
        return []
    if not others:
        return [{"op": "remove", "path": "/spec/taints"}]
    return [{"op": "replace", "path": "/spec/taints", "value": others}]


# Only as long as they are ours, also at the moment of writing.
def _withdrawing(node: Mapping[str, Any], instance: str) -> _Patch:
    metadata = node["metadata"]
    annotations = metadata.get("annotations") or {}
    if annotations.get(AGENT_ANNOTATION) != instance:
        return []
    removed = [
        {"op": "remove", "path": _pointer("metadata", name, key)}
        for name, key in (
            ("labels", LAYER_LABEL),
            ("annotations", SELFTEST_ANNOTATION),
            ("annotations", AGENT_ANNOTATION),
        )
        if key in (metadata.get(name) or {})
    ]
    return [_test(_pointer("metadata", "annotations", AGENT_ANNOTATION), instance), *removed]


def _test(path: str, value: str) -> dict[str, Any]:
    return {"op": "test", "path": path, "value": value}


# RFC 6901: the slash in our keys is not one of the path.
def _pointer(*keys: str) -> str:
    return "".join("/" + key.replace("/", "~1") for key in keys)
