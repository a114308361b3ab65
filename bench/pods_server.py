"""An API server with as many pods as a node has, in a process of its own: run by bench/pods.py.

It reads one JSON object from its input: the node's name, the containers' ids by the pods' uids, and where to
write a kubeconfig. It says one line when it serves, and ends with its input.
"""

import json
import sys
from pathlib import Path
from typing import Any

# Run as a script, its own folder is first on the path; its modules are found from the checkout.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tests.api_server import ApiServer, node, pod  # noqa: E402

# As pods are: what the API server says of one has some 10 KiB, the larger half about who wrote what.
_VARIABLES, _FIELDS = 30, 60


def main() -> None:
    """Serve until the input ends."""
    asked = json.loads(sys.stdin.readline())
    with ApiServer() as server:
        server.put_node(node(asked["node"]))
        for number, (uid, containers) in enumerate(asked["pods"].items()):
            server.put_pod(_pod(number, asked["node"], uid, containers))
        server.write_kubeconfig(Path(asked["kubeconfig"]))
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        sys.stdin.read()


def _pod(number: int, node_name: str, uid: str, containers: list[str]) -> dict[str, Any]:
    made = pod(
        f"workload-{number}",
        namespace=f"team-{number % 10}",
        uid=uid,
        node=node_name,
        # One in two asks for protection.
        labels={"app": "workload", **({"cloudtaser.io/inject": "true"} if number % 2 else {})},
        containers={f"container-{place}": each for place, each in enumerate(containers)},
    )
    for container in made["spec"]["containers"]:
        container["env"] = [
            {"name": f"SETTING_{each}", "value": f"value of {each}"} for each in range(_VARIABLES)
        ]
    made["metadata"]["managedFields"] = [{"manager": "kubelet", "fieldsV1": _fields()}]
    return made


def _fields() -> dict[str, Any]:
    return {f'k:{{"uid":"{each:032x}","type":"Ready"}}': {".": {}, "f:status": {}} for each in range(_FIELDS)}


if __name__ == "__main__":
    main()
