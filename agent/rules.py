"""What the programs do about each vector, and where they look for pods: one struct, written whole."""

import ctypes
from dataclasses import dataclass

from agent import abi
from agent.config import Config
from agent.kernel import Map
from agent.options import UnknownPods
from agent.vectors import CATALOGUE, Layer

_RATE_WINDOW_NS = 1_000_000_000


@dataclass(slots=True, kw_only=True)
class PodRules:
    """What the programs must know to find pods.

    `hierarchy` is the number of the cgroup hierarchy in which pods are told apart. `any_parent`: no cgroup of
    pods is known yet. `shared`: some pod that is protected has a shared pid namespace.
    """

    hierarchy: int
    any_parent: bool = True
    shared: bool = False


class Rules:
    """The kernel's copy of the configuration."""

    def __init__(self, conf: Map, config: Config, layer: Layer, pods: PodRules | None = None) -> None:
        """Take the map; nothing is written yet. Without `pods` no process is looked for in any."""
        self.pods = pods
        self._conf = conf
        self._config = config
        self._layer = layer

    def begin(self) -> None:
        """Write everything, before the programs attach; nothing is judged until something is protected."""
        self._write(armed=False)

    def write(self) -> None:
        """Write everything again, while the programs run.

        The kernel arms itself at the exec of a wrapper. That must not be undone by what was read here a
        moment before, so from now on it is armed; on a node without any wrapper the price is small.
        """
        self._write(armed=True)

    def change(self, config: Config) -> None:
        """Follow a new configuration."""
        self._config = config
        self.write()

    def _write(self, *, armed: bool) -> None:
        action = (ctypes.c_uint8 * abi.MAX_VECTORS)()
        for vector in CATALOGUE:
            action[vector.number] = self._config.action(vector)
        rules = abi.Config(
            action=action,
            rate_window_ns=_RATE_WINDOW_NS,
            rate_burst=self._config.rate_burst,
            layer=self._layer,
            armed=armed,
        )
        if self.pods is not None:
            rules.pods = 1
            rules.hierarchy = self.pods.hierarchy
            rules.any_parent = self.pods.any_parent
            rules.shared_pods = self.pods.shared
            rules.protect_unknown = self._config.unknown_pods is UnknownPods.PROTECT
        self._conf.update(ctypes.c_uint32(0), rules)
