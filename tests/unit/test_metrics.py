from collections import Counter

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from agent.abi import Loss
from agent.events import AttemptKey
from agent.metrics import Build, ClusterCounts, Metrics, Trouble, VectorState
from agent.reload import ReloadState
from agent.vectors import BY_ID, CATALOGUE, Layer, Outcome

BUILD = Build(version="1.2.3", layer=Layer.LSM, kernel="6.1.0")


class Kernel:
    """Counts as the kernel would keep them."""

    def __init__(self):
        self.attempts_so_far = {}
        self.losses_so_far = {}

    def attempts(self):
        return self.attempts_so_far

    def losses(self):
        return self.losses_so_far

    def protected_processes(self):
        return 5

    def protected_trees(self):
        return 2

    def programs_loaded(self):
        return 7

    def runs_skipped(self):
        return 3


class Stream:
    undecodable = 3
    undelivered = 4


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return Metrics(BUILD, registry)


@pytest.fixture
def kernel():
    return Kernel()


@pytest.fixture
def watch(metrics, kernel):
    def watch(states=None, **providers):
        layers = (Layer.LSM, Layer.TRACEPOINT)
        metrics.watch(kernel, Stream(), lambda: states or {}, layers, **providers)

    return watch


def labelled(family):
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


@pytest.mark.usefixtures("metrics")
def test_what_runs_here_is_known_before_anything_is_watched(registry):
    labels = {"version": "1.2.3", "layer": "lsm", "kernel": "6.1.0"}

    assert registry.get_sample_value("cloudtaser_ebpf_build_info", labels) == 1
    assert registry.get_sample_value("cloudtaser_ebpf_event_delay_seconds_count") == 0


def test_a_node_without_a_layer_says_so():
    body = Metrics(Build(version="1", layer=None, kernel="6.1.0")).render("").body

    assert b'build_info{kernel="6.1.0",layer="none",version="1"} 1.0' in body


def test_every_series_is_there_from_the_start_at_zero(metrics, watch):
    watch()

    families = {
        family.name: family
        for family in text_string_to_metric_families(metrics.render("text/plain").body.decode())
    }
    samples = {name: Counter(sample.value for sample in family.samples) for name, family in families.items()}

    assert samples["cloudtaser_ebpf_events"] == {0: len(CATALOGUE) * 2 * len(Outcome)}
    assert samples["cloudtaser_ebpf_vector_layer"] == {0: len(CATALOGUE) * len(Layer)}
    assert samples["cloudtaser_ebpf_vector_effective"] == {0: len(CATALOGUE)}
    assert {sample.labels["reason"] for sample in families["cloudtaser_ebpf_events_lost"].samples} == {
        *("rate_limited", "ring_full", "members_full", "undecodable", "sink")
    }
    # A node without Kubernetes has the same series as any other.
    assert labelled(families["cloudtaser_ebpf_kubernetes_errors"]) == {
        (trouble.value,): 0 for trouble in Trouble
    }
    assert labelled(families["cloudtaser_ebpf_pods"]) == {("yes",): 0, ("no",): 0, ("unsaid",): 0}
    assert labelled(families["cloudtaser_ebpf_config_reloads"]) == {("applied",): 0, ("refused",): 0}
    for name in ("kubernetes_connected", "trees_pending", "unattributed", "config_refused"):
        assert samples[f"cloudtaser_ebpf_{name}"] == {0: 1}


def test_how_the_agent_stands_with_kubernetes_is_read_at_every_scrape(registry, watch):
    counts = ClusterCounts()
    watch(cluster=lambda: counts)

    counts = ClusterCounts(
        connected=True,
        errors={"watch": 2, Trouble.POD: 3},
        pods={"yes": 5, "unsaid": 7},
        pending=11,
        unattributed=13,
    )

    def value(name, **labels):
        return registry.get_sample_value(f"cloudtaser_ebpf_{name}", labels)

    assert value("kubernetes_connected") == 1
    assert [value("kubernetes_errors_total", reason=each) for each in ("watch", "event", "node", "pod")] == [
        *(2, 0, 0, 3)
    ]
    assert [value("pods", selected=each) for each in ("yes", "no", "unsaid")] == [5, 0, 7]
    assert value("trees_pending") == 11
    assert value("unattributed_total") == 13


def test_a_refused_configuration_is_seen_until_it_is_mended(registry, watch):
    state = ReloadState(refused="agent.yaml: unknown key 'mod'", reloads=2, refusals=3)
    watch(reload=lambda: state)

    def told():
        return [
            registry.get_sample_value("cloudtaser_ebpf_config_refused"),
            registry.get_sample_value("cloudtaser_ebpf_config_reloads_total", {"result": "applied"}),
            registry.get_sample_value("cloudtaser_ebpf_config_reloads_total", {"result": "refused"}),
        ]

    assert told() == [1, 2, 3]

    state = ReloadState(reloads=3, refusals=3)

    assert told() == [0, 3, 3]


def test_the_kernels_counters_are_read_at_every_scrape(registry, kernel, watch):
    watch()
    expected = {"vector": "proc-mem", "outcome": "killed", "layer": "lsm"}
    elsewhere = {"vector": "proc-mem", "outcome": "denied", "layer": "fmod_ret"}

    for count in (11, 13):
        kernel.attempts_so_far = {
            AttemptKey(vector=BY_ID["proc-mem"], layer=Layer.LSM, outcome=Outcome.KILLED): count,
            # A layer that was not announced is told all the same.
            AttemptKey(vector=BY_ID["proc-mem"], layer=Layer.FMOD_RET, outcome=Outcome.DENIED): 1,
        }

        assert registry.get_sample_value("cloudtaser_ebpf_events_total", expected) == count
        assert registry.get_sample_value("cloudtaser_ebpf_events_total", elsewhere) == 1


def test_losses_have_their_reasons(registry, kernel, watch):
    watch()
    kernel.losses_so_far = {Loss.RATE_LIMITED: 17, Loss.RING_FULL: 19}

    lost = {
        reason: registry.get_sample_value("cloudtaser_ebpf_events_lost_total", {"reason": reason})
        for reason in ("rate_limited", "ring_full", "members_full", "undecodable", "sink")
    }

    assert lost == {"rate_limited": 17, "ring_full": 19, "members_full": 0, "undecodable": 3, "sink": 4}


def test_the_state_of_vectors_is_told(registry, watch):
    watch({"proc-mem": VectorState(layer=Layer.TRACEPOINT, effective=True)})

    layers = {
        layer: registry.get_sample_value(
            "cloudtaser_ebpf_vector_layer", {"vector": "proc-mem", "layer": layer}
        )
        for layer in ("lsm", "fmod_ret", "tracepoint")
    }
    effective = {
        vector.id
        for vector in CATALOGUE
        if registry.get_sample_value("cloudtaser_ebpf_vector_effective", {"vector": vector.id})
    }

    assert layers == {"lsm": 0, "fmod_ret": 0, "tracepoint": 1}
    assert effective == {"proc-mem"}


@pytest.mark.parametrize(
    ("name", "value"), [("protected_processes", 5), ("protected_trees", 2), ("programs_loaded", 7)]
)
def test_gauges_are_read_from_the_kernel(registry, watch, name, value):
    watch()

    assert registry.get_sample_value(f"cloudtaser_ebpf_{name}") == value


def test_runs_that_the_kernel_skipped_are_told(registry, watch):
    watch()

    assert registry.get_sample_value("cloudtaser_ebpf_program_runs_skipped_total") == 3


def test_delays_are_observed(registry, metrics):
    metrics.observe_delay(0.0002)

    buckets = {
        bound: registry.get_sample_value("cloudtaser_ebpf_event_delay_seconds_bucket", {"le": bound})
        for bound in ("0.0001", "0.00025", "10.0", "+Inf")
    }
    assert buckets == {"0.0001": 0, "0.00025": 1, "10.0": 1, "+Inf": 1}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version="),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0"),
    ],
)
def test_the_format_follows_the_accept_header(metrics, accept, content_type):
    page = metrics.render(accept)

    assert page.content_type.startswith(content_type)
    assert page.body.endswith(b"# EOF\n") is ("openmetrics" in accept)
