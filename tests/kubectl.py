"""Debian's kubectl, fetched without installing it, and the little of an API server that its dry run asks for.

    python -m tests.kubectl

A machine need not have kubectl, and Debian 12's own is older than what the manifest uses. Once fetched, it
is used until `make clean`; nothing here needs the network then.
"""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.vm import kernels
from tests.vm.kernels import KernelError

RELEASE = "trixie"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind of object as discovery tells it; `group_version` is as in a manifest's apiVersion."""

    group_version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def group(self) -> str:
        """The group, empty for the core."""
        return self.group_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """The version within the group."""
        return self.group_version.rpartition("/")[2]

    @property
    def base(self) -> str:
        """The path of everything that has this group and version."""
        return f"/{'apis' if self.group else 'api'}/{self.group_version}"


def _resource(group_version: str, plural: str, kind: str, *, namespaced: bool) -> Resource:
    return Resource(group_version=group_version, plural=plural, kind=kind, namespaced=namespaced)


# What an empty cluster of any version has, as far as the manifest needs it.
RESOURCES = (
    _resource("v1", "namespaces", "Namespace", namespaced=False),
    _resource("v1", "serviceaccounts", "ServiceAccount", namespaced=True),
    _resource("v1", "configmaps", "ConfigMap", namespaced=True),
    _resource("v1", "resourcequotas", "ResourceQuota", namespaced=True),
    _resource("apps/v1", "daemonsets", "DaemonSet", namespaced=True),
    _resource("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", namespaced=False),
    _resource("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
)


def ensure() -> Path:
    """Return the path of kubectl, fetching it first if it is not there yet."""
    found = kernels.cache_folder() / "kubectl" / RELEASE / "kubectl"
    if found.exists():
        return found
    found.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=found.parent, prefix="partial-") as partial:
        folder = Path(partial)
        apt = kernels.Apt(folder / "apt", kernels.RELEASES[RELEASE])
        apt.update()
        (package,) = apt.fetch("kubectl")
        subprocess.run(["dpkg-deb", "--extract", package, folder / "root"], check=True)
        (folder / "root/usr/bin/kubectl").replace(found)  # at once, so that there is never half a kubectl
    return found


class Discovery:
    """An empty cluster on loopback: it tells which resources it has, and has no objects.

    `requests` has what was asked, as (method, path).
    """

    def __init__(self, resources: Sequence[Resource] = RESOURCES) -> None:
        self.requests: list[tuple[str, str]] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.documents = _documents(resources)
        self._server.requests = self.requests
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="discovery")

    @property
    def url(self) -> str:
        """Where the cluster is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _documents(resources: Sequence[Resource]) -> dict[str, Any]:
    by_base: dict[str, list[Resource]] = {}
    for each in resources:
        by_base.setdefault(each.base, []).append(each)
    documents: dict[str, Any] = {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [_group(same[0]) for same in by_base.values() if same[0].group],
        },
        "/openapi/v3": {
            "paths": {base.removeprefix("/"): {"serverRelativeURL": f"/openapi/v3{base}"} for base in by_base}
        },
    }
    for base, same in by_base.items():
        documents[base] = {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": same[0].group_version,
            "resources": [_listed(each) for each in same],
        }
        documents[f"/openapi/v3{base}"] = {
            "openapi": "3.0.0",
            "paths": {f"{base}/{each.plural}/{{name}}": _validated_by_the_server(each) for each in same},
        }
    return documents


def _group(resource: Resource) -> dict[str, Any]:
    version = {"groupVersion": resource.group_version, "version": resource.version}
    return {"name": resource.group, "versions": [version], "preferredVersion": version}


def _listed(resource: Resource) -> dict[str, Any]:
    return {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
    }


# Servers validate fields since 1.25, and say so here. kubectl then leaves it to them, as it does in any
# cluster of today; without this it would ask for the whole of the older OpenAPI.
def _validated_by_the_server(resource: Resource) -> dict[str, Any]:
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    parameters = [{"name": "fieldValidation", "in": "query"}]
    return {"patch": {"parameters": parameters, "x-kubernetes-group-version-kind": kind}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    documents: dict[str, Any]
    requests: list[tuple[str, str]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path))
        document = self.server.documents.get(path) if self.command == "GET" else None
        status = HTTPStatus.OK if document is not None else HTTPStatus.NOT_FOUND
        body = json.dumps(document or {"kind": "Status", "apiVersion": "v1", "code": 404}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the base class looks for these names

    def log_message(self, *_: object) -> None:
        pass


def main() -> int:
    """Fetch kubectl unless it is there."""
    try:
        ensure()
    except KernelError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
