"""Flags, a YAML file and the environment into one frozen `Config`.

Flags win over the file, the file over the environment. Every source is read to the end, so that one
`ConfigError` lists every mistake.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent.errors import ConfigError
from agent.options import ENVIRONMENT_PREFIX, OPTIONS, Address, Option, UnknownPods, hint, nearest, shown
from agent.vectors import Action, Layer, Mode, Vector

_BY_KEY: Mapping[str, Option] = MappingProxyType({option.key: option for option in OPTIONS})
_FILE_VARIABLE = ENVIRONMENT_PREFIX + "CONFIG"
_FILE_BYTES = 1 << 16  # read in half a second, and while the agent runs

# Kubernetes sets these in every pod for a Service called cloudtaser-ebpf or cloudtaser-ebpf-….
_SERVICE_LINK = re.compile(
    ENVIRONMENT_PREFIX
    + r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the operator asked for, checked."""

    mode: Mode
    layer: Layer | None
    actions: Mapping[str, Action]
    protect_exe: tuple[str, ...]
    protect_pid: tuple[int, ...]
    exempt_exe: tuple[str, ...]
    namespaces: tuple[str, ...]
    allow_weaker: bool
    unknown_pods: UnknownPods
    metrics_address: Address
    socket_path: Path
    node: str
    standalone: bool
    kubeconfig: Path | None
    node_signals: bool
    pod_events: bool
    require_effective: bool
    reactive_kill: bool
    log_all: bool
    events_per_second: int
    max_processes: int
    ring_bytes: int

    @property
    def metrics_host(self) -> str:
        """The address that metrics are served at."""
        return self.metrics_address.host

    @property
    def metrics_port(self) -> int:
        """The port that metrics are served at; 0 lets the kernel choose."""
        return self.metrics_address.port

    @property
    def rate_burst(self) -> int:
        """Events a second of one offender and vector, in the kernel's terms: 0 is no limit."""
        return 0 if self.log_all else self.events_per_second

    def action(self, vector: Vector) -> Action:
        """Return what to do about a vector: its own setting, else the preset's.

        The preset `detect` is absolute, so that one word turns a node, or a cluster, to blocking nothing.
        """
        if self.mode is Mode.DETECT:
            return Action.DETECT
        asked = self.actions.get(vector.id, vector.action(self.mode))
        if asked is Action.KILL and not self.reactive_kill:
            return Action.DENY
        return asked


def file_path(flags: Mapping[str, object], environ: Mapping[str, str]) -> Path | None:
    """Return the file that `load` reads with these flags and variables, None if none is named."""
    named = flags.get("config") or environ.get(_FILE_VARIABLE)
    return Path(str(named)) if named else None


def load(flags: Mapping[str, object], environ: Mapping[str, str], hostname: str) -> Config:
    """Read every source; `flags` are the command line's by field name, None where not given.

    Flags that are no options, such as a sub-command's own, are left alone.
    """
    settings = _Settings()
    settings.take_variables(environ)
    if path := file_path(flags, environ):
        settings.take_file(path)
    settings.take_flags(flags)
    if settings.mistakes:
        raise ConfigError(*settings.mistakes)
    values = settings.values
    return Config(**values | {"node": values["node"] or hostname})


class _Settings:
    """The values so far, a later source over an earlier one, and the mistakes in all of them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {option.field: option.default for option in OPTIONS}
        self.mistakes: list[str] = []

    def take_variables(self, environ: Mapping[str, str]) -> None:
        known = {option.environment: option for option in OPTIONS}
        for name, raw in sorted(environ.items()):
            if name in known:
                if raw:  # templates leave a variable empty to say nothing
                    self._take(known[name], name, raw)
            elif _is_misspelt(name):
                self.mistakes.append(f"{name}: unknown variable{_variable_hint(name)}")

    def take_file(self, path: Path) -> None:
        try:
            settings = _read(path)
        except ConfigError as error:
            self.mistakes.extend(f"{path}: {mistake}" for mistake in error.mistakes)
            return
        for key, raw in settings.items():
            if option := _BY_KEY.get(key):
                if raw is None:  # a key whose values are all commented out says nothing
                    continue
                self._take(option, f"{path}: {key}", raw)
            else:
                self.mistakes.append(f"{path}: unknown key {key!r}{hint(key, _BY_KEY)}")

    def take_flags(self, flags: Mapping[str, object]) -> None:
        for option in OPTIONS:
            if (raw := flags.get(option.field)) is not None:
                self._take(option, f"--{option.key}", raw)

    def _take(self, option: Option, where: str, raw: object) -> None:
        try:
            self.values[option.field] = option.parse(raw)
        except ConfigError as error:
            self.mistakes.extend(f"{where}: {mistake}" for mistake in error.mistakes)


# A misspelt variable must not pass in silence; what Kubernetes itself sets is none of ours.
def _is_misspelt(name: str) -> bool:
    ours = name.startswith(ENVIRONMENT_PREFIX) and name != _FILE_VARIABLE
    return ours and not _SERVICE_LINK.fullmatch(name)


# Without the prefix, in which any two are alike, and by the key too: MODE is set by ENFORCE_MODE.
def _variable_hint(name: str) -> str:
    known = {option.environment.removeprefix(ENVIRONMENT_PREFIX): option.environment for option in OPTIONS}
    known |= {option.key.replace("-", "_").upper(): option.environment for option in OPTIONS}
    close = nearest(name.removeprefix(ENVIRONMENT_PREFIX), known)
    return f", did you mean {known[close]!r}?" if close else ""


# Patterns of namespaces begin with what YAML takes for itself: * is an alias and ! a tag.
def _quote_hint(error: Exception) -> str:
    about = f"{getattr(error, 'context', '')} {getattr(error, 'problem', '')}"
    reserved = ("alias", "constructor for the tag", "flow sequence")
    return " (put quotes around a value that begins with * or !)" if any(r in about for r in reserved) else ""


def _read(path: Path) -> dict[str, object]:
    import yaml  # noqa: PLC0415 - costs start-up time and memory, and most nodes have no file

    try:
        with path.open("rb") as stream:
            text = stream.read(_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from error
    if len(text) > _FILE_BYTES:
        raise ConfigError(f"must have at most {_FILE_BYTES} bytes, which is ample for every setting")
    try:
        settings = yaml.safe_load(text)
    except Exception as error:
        # Not only YAMLError: what it makes numbers and dates with raises what it likes.
        reason = " ".join(str(error).split())
        raise ConfigError(f"not YAML: {reason}{_quote_hint(error)}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"must be a mapping of keys to values, not {shown(settings)}")
    return {str(key): value for key, value in settings.items()}
