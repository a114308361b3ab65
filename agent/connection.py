"""The API server as the agent's threads have it: connected at the first call, and at the next if that failed.

A file that is not there yet, or a service account that is mounted late, is nothing to give up for.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.kube import Client, PodList, PodStream, connect


class Connection:
    """The calls of `agent.kube.Client`; each raises `KubeError`, also for want of a way to the API server."""

    def __init__(self, kubeconfig: Path | None) -> None:
        """Connect by a file, or by the pod's service account if there is none."""
        self._kubeconfig = kubeconfig
        self._guard = threading.Lock()
        self._connected: Client | None = None

    def list_pods(self, node: str, resource_version: str) -> PodList:
        """List the pods of a node."""
        return self._client().list_pods(node, resource_version)

    def watch_pods(self, node: str, resource_version: str, seconds: float) -> PodStream:
        """Begin to watch the pods of a node."""
        return self._client().watch_pods(node, resource_version, seconds)

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        """Store a new Event."""
        self._client().create_event(namespace, body)

    def patch_event(self, namespace: str, name: str, body: Mapping[str, Any]) -> None:
        """Merge `body` into an Event."""
        self._client().patch_event(namespace, name, body)

    def get_node(self, name: str) -> dict[str, Any]:
        """Return a node."""
        return self._client().get_node(name)

    def patch_node(self, name: str, body: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Change a node."""
        self._client().patch_node(name, body)

    def close(self) -> None:
        """Close what is open."""
        with self._guard:
            if self._connected is not None:
                self._connected.close()

    def _client(self) -> Client:
        with self._guard:
            if self._connected is None:
                self._connected = connect(self._kubeconfig)
            return self._connected
