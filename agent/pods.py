"""A pod as the API server tells it, parsed to the little that the agent needs.

Whoever makes a pod writes most of it: what cannot be understood is a line in `Pod.mistakes` and is left out,
and every field has an end.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

INJECT = "cloudtaser.io/inject"
MODE = "cloudtaser.io/ebpf-mode"
ACTION_PREFIX = "cloudtaser.io/ebpf-"  # and a vector's id

_MIRROR = "kubernetes.io/config.mirror"
# The kubelet's hash of a static pod. It has no dashes, so it is no other pod's uid: the annotation is by
# whoever made the pod, and they must not pass for somebody else.
_STATIC_UID = re.compile(r"[0-9a-f]{32}")
# What containerd, CRI-O and Docker make, and the only form that a cgroup's name is searched for.
_CONTAINER_ID = re.compile(r"[a-z0-9.-]+://([0-9a-f]{64})")

_VALUE_CHARACTERS = 63  # of an annotation of ours, as a label's value has
_ACTIONS = 64  # far more than there are vectors
_MISTAKES = 8  # told of one pod


class PodError(ValueError):
    """What the API server sent has no uid, name or namespace, so it is no pod."""


class Inject(Enum):
    """Whether the pod asks to be protected; `NO` is an answer, `UNSAID` is none."""

    YES = "yes"
    NO = "no"
    UNSAID = "unsaid"


class ContainerKind(Enum):
    """In which of the pod's three lists a container is."""

    INIT = "init"
    REGULAR = "regular"
    EPHEMERAL = "ephemeral"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container that has been started; `id` is without its runtime's name and unique for each start."""

    id: str
    name: str
    kind: ContainerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of this node.

    `uid` is as in the names of its cgroups: the kubelet's hash for a static pod, else `metadata.uid`.
    `api_uid` is always `metadata.uid`. `mode` and `actions` (by vector id, sorted) are the words of the
    annotations, not yet understood. `mistakes` has one line each, fit for a log.
    """

    uid: str
    api_uid: str
    namespace: str
    name: str
    inject: Inject
    mode: str | None
    actions: tuple[tuple[str, str], ...]
    shared_pids: bool
    containers: tuple[Container, ...]
    mistakes: tuple[str, ...]


_STATUSES = (
    ("initContainerStatuses", ContainerKind.INIT),
    ("containerStatuses", ContainerKind.REGULAR),
    ("ephemeralContainerStatuses", ContainerKind.EPHEMERAL),
)


def parse(raw: Mapping[str, Any]) -> Pod:
    """Parse a pod of core/v1, or raise a `PodError` where there is no uid, name or namespace."""
    metadata = _mapping(raw.get("metadata"))
    spec = _mapping(raw.get("spec"))
    annotations = _mapping(metadata.get("annotations"))
    mistakes: list[str] = []
    api_uid = _required(metadata, "uid")
    words = dict(_words(annotations, mistakes))
    return Pod(
        uid=_cgroup_uid(annotations, api_uid, mistakes),
        api_uid=api_uid,
        namespace=_required(metadata, "namespace"),
        name=_required(metadata, "name"),
        inject=_inject(_mapping(metadata.get("labels")), annotations, mistakes),
        mode=words.pop(MODE, None),
        actions=tuple(sorted((key.removeprefix(ACTION_PREFIX), word) for key, word in words.items())),
        shared_pids=spec.get("shareProcessNamespace") is True or spec.get("hostPID") is True,
        containers=tuple(_containers(_mapping(raw.get("status")), mistakes)),
        mistakes=_bounded(mistakes),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _required(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    if not isinstance(value, str) or not value:
        raise PodError(f"the API server sent a pod without {key}")
    return value


def _cgroup_uid(annotations: Mapping[str, Any], api_uid: str, mistakes: list[str]) -> str:
    mirror = annotations.get(_MIRROR)
    if mirror is None:
        return api_uid
    if isinstance(mirror, str) and _STATIC_UID.fullmatch(mirror):
        return mirror
    mistakes.append(f"annotation {_MIRROR} is {_shown(mirror)}, not a static pod's hash: not believed")
    return api_uid


def _inject(labels: Mapping[str, Any], annotations: Mapping[str, Any], mistakes: list[str]) -> Inject:
    said = set()
    for where, source in (("label", labels), ("annotation", annotations)):
        match source.get(INJECT):
            case None:
                pass
            case "true":
                said.add(Inject.YES)
            case "false":
                said.add(Inject.NO)
            case other:
                mistakes.append(f'{where} {INJECT} is {_shown(other)}, not "true" or "false": ignored')
    return next((each for each in (Inject.NO, Inject.YES) if each in said), Inject.UNSAID)


# The mode and the actions, as they were written.
def _words(annotations: Mapping[str, Any], mistakes: list[str]) -> Iterator[tuple[str, str]]:
    keys = sorted(key for key in annotations if key.startswith(ACTION_PREFIX) and key != MODE)
    if len(keys) > _ACTIONS:
        mistakes.append(
            f"{len(keys)} annotations {ACTION_PREFIX}…, more than {_ACTIONS}: the rest is ignored"
        )
    for key in [MODE] * (MODE in annotations) + keys[:_ACTIONS]:
        value = annotations[key]
        if isinstance(value, str) and len(value) <= _VALUE_CHARACTERS:
            yield key, value
        else:
            mistakes.append(f"annotation {_plain(key)} is {_shown(value)}, not a word: ignored")


def _containers(status: Mapping[str, Any], mistakes: list[str]) -> Iterator[Container]:
    for key, kind in _STATUSES:
        entries = status.get(key)
        for entry in entries if isinstance(entries, list) else ():
            container = _mapping(entry)
            name, id_ = container.get("name"), container.get("containerID")
            if id_ is None or id_ == "":
                continue  # not started yet
            found = _CONTAINER_ID.fullmatch(id_) if isinstance(id_, str) else None
            if found and isinstance(name, str):
                yield Container(id=found[1], name=name, kind=kind)
            else:
                mistakes.append(f"container {_shown(name)} has the id {_shown(id_)}, not understood: ignored")


def _bounded(mistakes: list[str]) -> tuple[str, ...]:
    if len(mistakes) <= _MISTAKES:
        return tuple(mistakes)
    kept = mistakes[: _MISTAKES - 1]
    return (*kept, f"{len(mistakes) - len(kept)} more like these")


# What others wrote, without anything that could steer a terminal or begin a line.
def _shown(value: object) -> str:
    return f'"{_plain(value)}"' if isinstance(value, str) else f"a {type(value).__name__}"


def _plain(text: str) -> str:
    shown = ascii(text[:_VALUE_CHARACTERS])[1:-1]
    return shown if len(text) <= _VALUE_CHARACTERS else f"{shown}…"
