"""What can be set: one table of names, parsers, defaults and help.

The configuration, the command line's flags and the reference derive from `OPTIONS`. A parser takes what
YAML, a flag or a variable gave and raises `ConfigError` with every mistake in it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent.errors import ConfigError
from agent.vectors import BY_ID, Action, Layer, Mode

ENVIRONMENT_PREFIX = "CLOUDTASER_EBPF_"

_NAME_BYTES = 31  # CT_NAME less the NUL: what the kernel side compares
_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path less the NUL
_MOST_PIDS = 1 << 22  # PID_MAX_LIMIT on 64-bit kernels
# A namespace's name is a DNS label, so it has none of the characters that make a pattern.
_NAMESPACES = re.compile(r"!?(?:[a-z0-9*?-]|\[!?[a-z0-9-]+\])+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return the form that `--metrics-address` takes."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnknownPods(StrEnum):
    """What to do about a container that starts before its pod is known."""

    PROTECT = "protect"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One thing that can be set: `key` in the file, `--key` as a flag, and a variable.

    `live` is whether it may change while the agent runs; the others take a restart.
    """

    key: str
    parse: Callable[[Any], Any]
    default: Any
    help: str
    variable: str | None = None
    attribute: str | None = None
    live: bool = False

    @property
    def field(self) -> str:
        """The name in `Config` and in the parsed flags."""
        return self.attribute or self.key.replace("-", "_")

    @property
    def environment(self) -> str:
        """The environment variable."""
        return self.variable or ENVIRONMENT_PREFIX + self.key.replace("-", "_").upper()


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like this one, if any is like it."""
    return next(iter(get_close_matches(word, list(known), n=1)), None)


def hint(word: str, known: Iterable[str]) -> str:
    """Return the end of a message that asks whether the nearest known word was meant, or nothing."""
    close = nearest(word, known)
    return f", did you mean {close!r}?" if close else ""


def shown(raw: object) -> str:
    """Return a value as a message can quote it, whatever its size."""
    return repr(raw) if len(repr(raw)) <= 60 else f"a {type(raw).__name__}"


def _choice(*names: str) -> Callable[[object], str]:
    def parse(raw: object) -> str:
        if raw not in names:
            raise ConfigError(f"must be one of {', '.join(names)}, not {shown(raw)}{hint(str(raw), names)}")
        return str(raw)

    return parse


def _mode(raw: object) -> Mode:
    return Mode(_choice(*(mode.value for mode in Mode))(raw))


def _unknown_pods(raw: object) -> UnknownPods:
    return UnknownPods(_choice(*(choice.value for choice in UnknownPods))(raw))


def _layer(raw: object) -> Layer | None:
    name = _choice("auto", *(layer.name.lower() for layer in Layer))(raw)
    return None if name == "auto" else Layer[name.upper()]


def _actions(raw: object) -> Mapping[str, Action]:
    if isinstance(raw, str):  # a variable or a flag: VECTOR=ACTION,…
        raw = dict(pair.partition("=")[::2] for pair in _words(raw))
    if not isinstance(raw, dict):
        raise ConfigError(f"must be a mapping of vectors to actions, not {shown(raw)}")
    actions: dict[str, Action] = {}
    mistakes: list[str] = []
    for name, asked in raw.items():
        if name not in BY_ID:
            mistakes.append(f"unknown vector {name!r}{hint(str(name), BY_ID)}")
            continue
        try:
            actions[name] = Action[_choice("detect", "deny", "kill")(asked).upper()]
        except ConfigError as error:
            mistakes.extend(f"{name}: {mistake}" for mistake in error.mistakes)
    if mistakes:
        raise ConfigError(*mistakes)
    return MappingProxyType(actions)


def _flag(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    return _choice("true", "false")(str(raw).lower()) == "true"


def _integer(least: int, most: int) -> Callable[[object], int]:
    def parse(raw: object) -> int:
        # int() takes " 1_0 " and True as well, which nobody means.
        if isinstance(raw, bool) or not re.fullmatch(r"\d{1,20}", str(raw), re.ASCII):
            raise ConfigError(f"must be a whole number, not {shown(raw)}")
        if not least <= int(str(raw)) <= most:
            raise ConfigError(f"must be from {least} to {most}, not {raw}")
        return int(str(raw))

    return parse


def _ring_bytes(raw: object) -> int:
    size = _integer(4096, 1 << 28)(raw)
    if size & (size - 1):
        raise ConfigError(f"must be a power of two, such as {1 << size.bit_length()}, not {size}")
    return size


def _words(raw: str) -> list[str]:
    return [word.strip() for word in raw.split(",") if word.strip()]


def _each(parse_one: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    def parse(raw: object) -> tuple[Any, ...]:
        items = raw if isinstance(raw, list | tuple) else _words(str(raw))
        values: dict[Any, None] = {}  # as an ordered set
        mistakes: list[str] = []
        for item in items:
            try:
                values[parse_one(item)] = None
            except ConfigError as error:
                mistakes.extend(error.mistakes)
        if mistakes:
            raise ConfigError(*mistakes)
        return tuple(values)

    return parse


def _absolute_path(raw: object) -> str:
    path = str(raw)
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ConfigError(f"must be the absolute path of a file, not {shown(raw)}")
    return path


def _name_or_path(raw: object) -> str:
    name = str(raw)
    if "/" in name:
        return _absolute_path(raw)
    if not 1 <= len(name.encode()) <= _NAME_BYTES or name in {".", ".."} or "\0" in name:
        raise ConfigError(f"must be a name of 1 to {_NAME_BYTES} bytes or an absolute path, not {shown(raw)}")
    return name


def _socket_path(raw: object) -> Path:
    path = _absolute_path(raw)
    if len(path.encode()) > _SOCKET_PATH_BYTES:
        raise ConfigError(f"must have at most {_SOCKET_PATH_BYTES} bytes, the kernel's limit for sockets")
    return Path(path)


def _file_path(raw: object) -> Path:
    return Path(_absolute_path(raw))


def _namespace(raw: object) -> str:
    if not _NAMESPACES.fullmatch(str(raw)):
        raise ConfigError(
            f"must be a namespace or a pattern with *, ? or [..], after a ! to exclude, not {shown(raw)}"
        )
    return str(raw)


def _namespaces(raw: object) -> tuple[str, ...]:
    patterns = _each(_namespace)(raw)
    if not patterns:
        raise ConfigError("must have at least one pattern, such as '*' for every namespace")
    # Who only excludes means all the others, and a selector that selects nothing would protect nobody.
    return patterns if any(not each.startswith("!") for each in patterns) else ("*", *patterns)


def _address(raw: object) -> Address:
    matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+)):(\d{1,5})", str(raw), re.ASCII)
    if not matched or int(matched[3]) > 65535:
        raise ConfigError(f"must be HOST:PORT or [IPV6]:PORT, such as 0.0.0.0:9090, not {shown(raw)}")
    return Address(host=matched[1] or matched[2], port=int(matched[3]))


def _node(raw: object) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", str(raw)):  # as Kubernetes limits it
        raise ConfigError(f"must be a host name, not {shown(raw)}")
    return str(raw)


OPTIONS: tuple[Option, ...] = (
    Option(
        key="mode",
        variable="ENFORCE_MODE",
        parse=_mode,
        default=Mode.ENFORCE,
        help="the preset: detect blocks nothing, strict kills where enforce only denies",
        live=True,
    ),
    Option(key="layer", parse=_layer, default=None, help="how to attach; auto takes the best the node has"),
    Option(
        key="vectors",
        attribute="actions",
        parse=_actions,
        default=MappingProxyType({}),
        help="vectors with an action of their own: detect, deny or kill",
        live=True,
    ),
    Option(
        key="protect-exe",
        parse=_each(_name_or_path),
        default=("cloudtaser-wrapper",),
        help="executables that are wrappers, by name or absolute path",
        live=True,
    ),
    Option(
        key="protect-pid",
        parse=_each(_integer(1, _MOST_PIDS)),
        default=(),
        help="running processes that are wrappers",
    ),
    Option(
        key="exempt-exe",
        parse=_each(_absolute_path),
        default=(),
        help="executables that may do what others may not, by absolute path on the node",
        live=True,
    ),
    Option(
        key="namespaces",
        parse=_namespaces,
        default=("*",),
        help="namespaces whose pods may be protected, as patterns such as prod-*; a leading ! excludes",
        live=True,
    ),
    Option(
        key="allow-weaker",
        parse=_flag,
        default=False,
        help="let a pod's annotations ask for less than this configuration, too",
        live=True,
    ),
    Option(
        key="unknown-pods",
        parse=_unknown_pods,
        default=UnknownPods.PROTECT,
        help="a container that starts before its pod is known: protect it until it is, or ignore it",
        live=True,
    ),
    Option(
        key="metrics-address",
        parse=_address,
        default=Address(host="127.0.0.1", port=9090),
        help="where to serve /metrics, /healthz, /readyz and /status; port 0 lets the kernel choose",
    ),
    Option(
        key="socket-path",
        parse=_socket_path,
        default=Path("/run/cloudtaser/agent.sock"),
        help="the agent's local socket",
    ),
    Option(
        key="node",
        variable="NODE_NAME",
        parse=_node,
        default=None,
        help="this node's name in events; the host name if not set",
    ),
    Option(key="standalone", parse=_flag, default=False, help="run without Kubernetes"),
    Option(
        key="kubeconfig",
        parse=_file_path,
        default=None,
        help="how to reach the API server, by absolute path; the pod's service account if not set",
    ),
    Option(
        key="node-signals",
        parse=_flag,
        default=True,
        help="label and annotate the node, and remove its start-up taint when ready",
    ),
    Option(
        key="pod-events",
        parse=_flag,
        default=True,
        help="tell what was blocked as Kubernetes Events on the pods",
        live=True,
    ),
    Option(
        key="require-effective",
        parse=_flag,
        default=False,
        help="do not start if the self-test gets through any vector",
    ),
    Option(
        key="reactive-kill",
        variable="REACTIVE_KILL",
        parse=_flag,
        default=True,
        help="false turns every kill into a deny",
        live=True,
    ),
    Option(
        key="log-all",
        variable="LOG_ALL",
        parse=_flag,
        default=False,
        help="report every attempt, however many one offender makes",
        live=True,
    ),
    Option(
        key="events-per-second",
        parse=_integer(1, 1_000_000),
        default=10,
        help="events reported of one offender and vector; all are counted",
        live=True,
    ),
    Option(
        key="max-processes",
        parse=_integer(16, 1 << 20),
        default=16384,
        help="processes that can be protected at once",
    ),
    Option(
        key="ring-bytes",
        parse=_ring_bytes,
        default=1 << 20,
        help="size of the ring buffer of events, a power of two",
    ),
)
