"""What an Event on a pod says, for people who run it and did not ask for a lesson in system calls."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

_MESSAGE_BYTES = 1023  # the API takes 1024
_COMM_CHARACTERS = 32  # the kernel keeps 15, and up to 63 of its own threads


class Role(StrEnum):
    """Which side of an attempt the pod was on."""

    TARGET = "target"
    OFFENDER = "offender"


def message(role: Role, event: Mapping[str, Any]) -> str:
    """Return one line of printable ASCII about an attempt in the schema of `agent.events.as_dict`."""
    offender, target = event["offender"], event["target"]
    who = f"{_quoted(offender['comm'])} (pid {offender['pid'] or 'unknown'}, uid {offender['uid']}"
    if role is Role.TARGET:
        who += f", {_origin(offender, target)})"
        whom = f"container {target['container']}" if target.get("container") else "this pod"
    else:
        who += f"{_in_container(offender)}) of this pod"
        whom = _victim(offender, target)
    return _plain(f"{who} tried {event['vector']} on {whom} and was {event['outcome']}.")[:_MESSAGE_BYTES]


def _origin(offender: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    match offender.get("where"):
        case "pod" if offender.get("pod_uid") == target["pod_uid"]:
            return f"of this pod{_in_container(offender)}"
        case "pod" if offender.get("pod"):
            return f"pod {offender['namespace']}/{offender['pod']}{_in_container(offender)}"
        case "pod":
            return "from an unknown pod"
        case "node":
            return "on the node itself"
        case _:
            return "from an unknown place"


# Tenants must not learn from their own attacks what others are called.
def _victim(offender: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    if target.get("pod") and target.get("namespace") == offender["namespace"]:
        return f"pod {target['pod']}{_in_container(target)}"
    return "a protected process"


def _in_container(task: Mapping[str, Any]) -> str:
    return f", container {task['container']}" if task.get("container") else ""


def _quoted(comm: str | None) -> str:
    return '"' + comm[:_COMM_CHARACTERS].replace('"', "?") + '"' if comm else "a process"


# A process is called what its owner likes, and these words end up on terminals and in logs.
def _plain(text: str) -> str:
    return "".join(each if each.isascii() and each.isprintable() else "?" for each in text)
