"""Whether a pod is protected, and with which actions: its own words against the configuration.

A pod may ask for more than the configuration does. For less only where the operator allows it, since whoever
may annotate a pod need not be who answers for its secrets.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from agent.config import Config
from agent.options import hint
from agent.pods import ACTION_PREFIX, MODE, Inject, Pod
from agent.vectors import BY_ID, CATALOGUE, Action, Mode

_MODES: Mapping[str, Mode] = MappingProxyType({mode.value: mode for mode in Mode})
_ACTIONS: Mapping[str, Action] = MappingProxyType({action.name.lower(): action for action in Action})


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What holds for a pod.

    `actions` has every vector's by its id. `mistakes` are the annotations that were not understood and are
    left out, one line each.
    """

    inject: Inject
    actions: Mapping[str, Action]
    mistakes: tuple[str, ...]


def select(pod: Pod, config: Config) -> Selected:
    """Weigh the pod's label and annotations against the configuration."""
    mistakes = tuple(_mistakes(pod))
    mode = _MODES.get(pod.mode) if pod.mode is not None else None
    own = {vector: _ACTIONS[action] for vector, action in pod.actions if action in _ACTIONS}
    actions: dict[str, Action] = {}
    for vector in CATALOGUE:
        actions[vector.id] = base = config.action(vector)
        asked = own.get(vector.id, vector.action(mode) if mode else None)
        if asked is None or config.mode is Mode.DETECT:
            continue
        if asked is Action.KILL and not config.reactive_kill:
            asked = Action.DENY
        actions[vector.id] = asked if config.allow_weaker else max(base, asked)
    return Selected(inject=_inject(pod, config), actions=MappingProxyType(actions), mistakes=mistakes)


def _inject(pod: Pod, config: Config) -> Inject:
    # A NO stays one, so that it is told from a pod that never said anything.
    if pod.inject is Inject.YES and not _is_selected(pod.namespace, config.namespaces):
        return Inject.UNSAID
    return pod.inject


# By name alone: what a namespace is labelled with, the agent may not read.
def _is_selected(namespace: str, patterns: tuple[str, ...]) -> bool:
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return any(fnmatchcase(namespace, each) for each in wanted) and not any(
        fnmatchcase(namespace, each) for each in unwanted
    )


def _mistakes(pod: Pod) -> Iterator[str]:
    if pod.mode is not None and pod.mode not in _MODES:
        yield f"annotation {MODE}: unknown mode {pod.mode!a}{hint(pod.mode, _MODES)}"
    for vector, action in pod.actions:
        if vector not in BY_ID:
            yield f"annotation {ACTION_PREFIX}…: unknown vector {vector!a}{hint(vector, BY_ID)}"
        elif action not in _ACTIONS:
            yield f"annotation {ACTION_PREFIX}{vector}: unknown action {action!a}{hint(action, _ACTIONS)}"
