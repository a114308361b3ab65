"""The Prometheus surface, read from the kernel's counters when it is scraped.

The only importer of prometheus_client. Every series exists from the start, at zero, so that an alert on
a rate needs no first event.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.abi import Loss
from agent.events import AttemptKey, label
from agent.reload import ReloadState
from agent.vectors import CATALOGUE, Layer, Outcome

PREFIX = "cloudtaser_ebpf_"

# From a wake-up at once to a loop that was held up for seconds.
_DELAY_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)


class KernelCounts(Protocol):
    """What the kernel side counts; called at scrape time, from another thread, one call at a time."""

    def attempts(self) -> Mapping[AttemptKey, int]:
        """Return all real attempts so far."""
        ...

    def losses(self) -> Mapping[Loss, int]:
        """Return what the kernel could not record."""
        ...

    def protected_processes(self) -> int:
        """Return how many processes are protected now."""
        ...

    def protected_trees(self) -> int:
        """Return how many trees are protected now."""
        ...

    def programs_loaded(self) -> int:
        """Return how many programs are attached now."""
        ...

    def runs_skipped(self) -> int:
        """Return how many runs of a program the kernel skipped."""
        ...


class StreamCounts(Protocol):
    """What the pipeline counts."""

    @property
    def undecodable(self) -> int:
        """How many records did not decode."""
        ...

    @property
    def undelivered(self) -> int:
        """How many events a sink did not take."""
        ...


class Trouble(StrEnum):
    """What went wrong with Kubernetes; the values are labels."""

    WATCH = "watch"  # pods could not be listed or watched
    EVENT = "event"  # an Event could not be written
    NODE = "node"  # the node's label, annotation or taint could not be written
    POD = "pod"  # a pod or an annotation of it could not be understood


# What a pod's label and annotation say; a namespace that is not selected says nothing.
_SELECTED = ("yes", "no", "unsaid")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterCounts:
    """How the agent stands with Kubernetes; on its own it has none, so all is zero.

    `errors` counts by the values of `Trouble`, `pods` the pods of this node by "yes", "no" and "unsaid".
    What they leave out is zero.
    """

    connected: bool = False
    errors: Mapping[str, int] = field(default_factory=dict)
    pods: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    unattributed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorState:
    """How a vector stands on this node: its layer, None if it has none, and whether the self-test held."""

    layer: Layer | None
    effective: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What runs here."""

    version: str
    layer: Layer | None
    kernel: str


class Page(NamedTuple):
    """A rendered exposition."""

    content_type: str
    body: bytes


class Metrics:
    """The agent's metrics in a registry of their own."""

    def __init__(self, build: Build, registry: CollectorRegistry | None = None) -> None:
        """Register what the agent itself knows; `watch` adds what the kernel counts."""
        self._registry = registry or CollectorRegistry()
        self._scraping = threading.Lock()
        self._delay = Histogram(
            PREFIX + "event_delay_seconds",
            "Time from the attempt in the kernel to the sinks",
            buckets=_DELAY_BUCKETS_S,
            registry=self._registry,
        )
        info = Gauge(
            PREFIX + "build_info",
            "What runs here; always 1",
            ("version", "layer", "kernel"),
            registry=self._registry,
        )
        info.labels(build.version, _layer(build.layer), build.kernel).set(1)

    def watch(
        self,
        kernel: KernelCounts,
        stream: StreamCounts,
        vectors: Callable[[], Mapping[str, VectorState]],
        layers: Sequence[Layer],
        *,
        cluster: Callable[[], ClusterCounts] = ClusterCounts,
        reload: Callable[[], ReloadState] = ReloadState,
    ) -> None:
        """Serve these counts from now on; `layers` are those that can see an attempt on this node.

        `vectors` returns the state by vector id; one that it leaves out has no layer and no effect.
        """
        self._registry.register(_Counts(kernel, stream, vectors, tuple(layers)))
        self._registry.register(_Cluster(cluster))
        self._registry.register(_Configuration(reload))

    def observe_delay(self, seconds: float) -> None:
        """Record how long one event took from the kernel to the sinks."""
        self._delay.observe(seconds)

    def render(self, accept: str) -> Page:
        """Return all metrics in the best format for an Accept header."""
        encode, content_type = choose_encoder(accept)
        with self._scraping:
            return Page(content_type, encode(self._registry))


class _Counts(Collector):
    def __init__(
        self,
        kernel: KernelCounts,
        stream: StreamCounts,
        vectors: Callable[[], Mapping[str, VectorState]],
        layers: tuple[Layer, ...],
    ) -> None:
        self._kernel = kernel
        self._stream = stream
        self._vectors = vectors
        self._layers = layers

    def collect(self) -> Iterable[Metric]:
        yield self._events()
        yield self._lost()
        yield CounterMetricFamily(
            PREFIX + "program_runs_skipped",
            "Runs of a BPF program that the kernel skipped, as another task was preempted in one",
            self._kernel.runs_skipped(),
        )
        yield from self._states()
        for name, text, value in (
            ("protected_processes", "Processes protected now", self._kernel.protected_processes()),
            ("protected_trees", "Trees protected now", self._kernel.protected_trees()),
            ("programs_loaded", "BPF programs attached now", self._kernel.programs_loaded()),
        ):
            yield _gauge(name, text, value)

    def _events(self) -> Metric:
        family = CounterMetricFamily(
            PREFIX + "events",
            "Attempts on protected trees, as the kernel counted them",
            labels=("vector", "outcome", "layer"),
        )
        counts = {
            AttemptKey(vector=vector, layer=layer, outcome=outcome): 0
            for vector in CATALOGUE
            for layer in self._layers
            for outcome in Outcome
        }
        for key, count in (counts | dict(self._kernel.attempts())).items():
            family.add_metric((key.vector.id, label(key.outcome), label(key.layer)), count)
        return family

    def _lost(self) -> Metric:
        losses = self._kernel.losses()
        lost = {label(loss): losses.get(loss, 0) for loss in Loss}
        lost |= {"undecodable": self._stream.undecodable, "sink": self._stream.undelivered}
        return _counters("events_lost", "Events and processes that could not be recorded", "reason", lost)

    def _states(self) -> Iterable[Metric]:
        layers = GaugeMetricFamily(
            PREFIX + "vector_layer",
            "1 for the layer that watches the vector on this node",
            labels=("vector", "layer"),
        )
        effective = GaugeMetricFamily(
            PREFIX + "vector_effective", "1 where the self-test held", labels=("vector",)
        )
        states = self._vectors()
        for vector in CATALOGUE:
            state = states.get(vector.id, VectorState(layer=None, effective=False))
            for layer in Layer:
                layers.add_metric((vector.id, label(layer)), state.layer is layer)
            effective.add_metric((vector.id,), state.effective)
        return (layers, effective)


class _Cluster(Collector):
    def __init__(self, read: Callable[[], ClusterCounts]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        counts = self._read()
        yield _gauge(
            "kubernetes_connected", "1 while the pods of this node are listed and watched", counts.connected
        )
        yield _counters(
            "kubernetes_errors",
            "What went wrong between the agent and Kubernetes",
            "reason",
            {trouble.value: counts.errors.get(trouble.value, 0) for trouble in Trouble},
        )
        pods = GaugeMetricFamily(
            PREFIX + "pods", "Pods of this node, by whether they are to be protected", labels=("selected",)
        )
        for selected in _SELECTED:
            pods.add_metric((selected,), counts.pods.get(selected, 0))
        yield pods
        yield _gauge("trees_pending", "Trees protected until their pod is known", counts.pending)
        yield CounterMetricFamily(
            PREFIX + "unattributed", "Offenders and targets that run nobody knows where", counts.unattributed
        )


class _Configuration(Collector):
    def __init__(self, read: Callable[[], ReloadState]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        state = self._read()
        yield _counters(
            "config_reloads",
            "Changes of the configuration's file while the agent runs",
            "result",
            {"applied": state.reloads, "refused": state.refusals},
        )
        yield _gauge(
            "config_refused", "1 while the file is refused and the one before in force", bool(state.refused)
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value)


def _counters(name: str, text: str, label_name: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=(label_name,))
    for value, count in counts.items():
        family.add_metric((value,), count)
    return family


def _layer(layer: Layer | None) -> str:
    return "none" if layer is None else label(layer)
