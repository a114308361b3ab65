"""daemonset.yaml is what Kubernetes takes, asks for no more than the agent needs, and tells the defaults."""

import copy
import re
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml

from agent import node_signals, pods
from agent.config import file_path, load
from agent.options import OPTIONS, Address
from tests import kubectl

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "daemonset.yaml"
PAGE = ROOT / "docs" / "kubernetes.md"
NAMESPACE = "cloudtaser-system"

# What differs from node to node or is for use without a cluster, and so has no place in a ConfigMap.
NOT_FOR_A_CLUSTER = {"kubeconfig", "node", "protect-pid", "standalone"}

IN_FORCE = re.compile(r"^([a-z-]+):", re.MULTILINE)
COMMENTED = re.compile(r"^#([a-z-]+:)", re.MULTILINE)  # without a space; prose has one


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, as the API server does and YAML's loader does not."""

    def construct_mapping(self, node, *args, **kwargs):
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is given twice: {keys}"
        return super().construct_mapping(node, *args, **kwargs)


def loaded(text):
    return [document for document in yaml.load_all(text, UniqueKeys) if document]


def on_the_page():
    """Return the objects that docs/kubernetes.md shows to be applied."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [each for block in blocks for each in loaded(block) if isinstance(each, dict) and "kind" in each]


DOCUMENTS = loaded(MANIFEST.read_text())


def only(kind, name="cloudtaser-ebpf"):
    (found,) = (each for each in DOCUMENTS if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


DAEMONSET = only("DaemonSet")
POD = DAEMONSET["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
CONFIG = only("ConfigMap")["data"]["config.yaml"]


def newest_minors(count=3):
    minors = dict.fromkeys(
        kubernetes_validate.utils.major_minor(version) for version in kubernetes_validate.utils.all_versions()
    )
    return list(minors)[-count:]


# Schemas.


@pytest.mark.parametrize("minor", newest_minors())
def test_every_object_is_what_the_schemas_of_the_newest_kubernetes_say(minor):
    for document in [*DOCUMENTS, *on_the_page()]:
        assert kubernetes_validate.validate(document, minor, strict=True) == minor


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("spec", "template", "spec"), "hostPid", True),
        (("spec", "updateStrategy", "rollingUpdate"), "maxSurplus", 1),
        (("spec", "template", "spec", "containers", 0, "resources"), "limits", ["256Mi"]),
    ],
    ids=["misspelt", "unknown", "of the wrong type"],
)
def test_a_field_that_is_wrong_would_be_seen(path, key, value):
    wrong = copy.deepcopy(DAEMONSET)
    place = wrong
    for step in path:
        place = place[step]
    place[key] = value

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, newest_minors()[-1], strict=True)


# kubectl.


@pytest.fixture(scope="session")
def kubectl_path():
    return kubectl.ensure()


@pytest.fixture
def dry_run(kubectl_path, tmp_path):
    """Return a function that lets kubectl read a manifest against an empty cluster, and change nothing."""

    def dry_run(verb, manifest, *more):
        with kubectl.Discovery() as cluster:
            done = subprocess.run(
                [
                    *(kubectl_path, verb, "--dry-run=client", "--filename", manifest),
                    *("--server", cluster.url, "--cache-dir", tmp_path / "cache", *more),
                ],
                env={"HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")},
                capture_output=True,
                text=True,
                check=False,
            )
            assert {method for method, _ in cluster.requests} == {"GET"}
        return done

    return dry_run


@pytest.mark.parametrize("verb", ["create", "apply"])
def test_kubectl_takes_every_object(dry_run, verb):
    done = dry_run(verb, MANIFEST)

    names = re.findall(r"^\S+/(\S+) created \(dry run\)$", done.stdout, flags=re.MULTILINE)
    assert (done.stderr, done.returncode) == ("", 0)
    assert names == [document["metadata"]["name"] for document in DOCUMENTS]


def test_kubectl_refuses_what_a_cluster_does_not_have(dry_run, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(MANIFEST.read_text().replace("kind: DaemonSet", "kind: DemonSet"))

    done = dry_run("create", wrong, "--validate=false")

    assert done.returncode != 0
    assert 'no matches for kind "DemonSet"' in done.stderr


# What runs where.


def test_everything_is_in_one_namespace_which_comes_first():
    assert (DOCUMENTS[0]["kind"], DOCUMENTS[0]["metadata"]["name"]) == ("Namespace", NAMESPACE)
    assert {
        document["metadata"]["namespace"] for document in DOCUMENTS if "namespace" in document["metadata"]
    } == {NAMESPACE}
    assert DOCUMENTS[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def test_an_agent_runs_on_every_node_that_can_run_it():
    assert POD["nodeSelector"] == {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    assert POD["tolerations"] == [{"operator": "Exists"}]
    assert POD["priorityClassName"] == "system-node-critical"
    assert "affinity" not in POD


def test_the_next_agent_enforces_before_the_old_one_lets_go():
    assert DAEMONSET["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    # Two pods on one node cannot have the same port of the node.
    assert POD["hostNetwork"] is False
    assert all("hostPort" not in port for port in CONTAINER["ports"])


def test_the_selector_finds_the_pods():
    wanted = DAEMONSET["spec"]["selector"]["matchLabels"]

    assert wanted.items() <= DAEMONSET["spec"]["template"]["metadata"]["labels"].items()


def test_the_agent_sees_the_node_and_writes_only_where_it_must():
    assert POD["hostPID"] is True
    assert "hostIPC" not in POD
    assert CONTAINER["securityContext"] == {
        "privileged": True,
        "runAsUser": 0,
        "readOnlyRootFilesystem": True,
    }
    assert {mount["mountPath"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")} == {
        "/run/cloudtaser",
        "/tmp",
    }


def test_every_mount_has_its_volume_and_its_reason():
    lines = MANIFEST.read_text().splitlines()
    start, end = lines.index("          volumeMounts:"), lines.index("      volumes:")
    mounts = [at for at in range(start, end) if lines[at].startswith("            - name: ")]

    assert len(mounts) == len(CONTAINER["volumeMounts"])
    assert [lines[at] for at in mounts if not lines[at - 1].startswith("            # ")] == []
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {
        volume["name"] for volume in POD["volumes"]
    }


def test_no_folder_of_the_node_is_mounted_but_these():
    assert {
        volume["hostPath"]["path"]: volume["hostPath"]["type"]
        for volume in POD["volumes"]
        if "hostPath" in volume
    } == {
        "/run/cloudtaser": "DirectoryOrCreate",
        "/sys/fs/cgroup": "Directory",
        "/sys/kernel/security": "Directory",
    }


def test_a_node_can_be_left_in_time():
    ours_s = 5  # from SIGTERM to a clean end, as the agent promises

    assert POD["terminationGracePeriodSeconds"] > ours_s


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")],
)
def test_the_probes_ask_where_the_agent_answers(configured, probe, path):
    (port,) = CONTAINER["ports"]

    assert CONTAINER[probe]["httpGet"] == {"path": path, "port": port["name"]}
    assert configured(CONFIG).metrics_address == Address(host="0.0.0.0", port=port["containerPort"])


def test_a_slow_start_is_no_reason_to_start_again():
    startup, liveness = CONTAINER["startupProbe"], CONTAINER["livenessProbe"]

    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60


def test_memory_has_room_for_what_was_measured():
    # MiB: with 250 pods, and the compiler beside it at the start.
    resident, compiler = 60, 123
    memory = {name: mebibytes(amounts["memory"]) for name, amounts in CONTAINER["resources"].items()}

    assert resident < memory["requests"] < resident + compiler < memory["limits"]
    assert "cpu" in CONTAINER["resources"]["requests"]
    assert "cpu" not in CONTAINER["resources"]["limits"]


def mebibytes(quantity):
    assert quantity.endswith("Mi")
    return int(quantity.removesuffix("Mi"))


def test_the_image_names_no_registry():
    assert CONTAINER["image"] == "cloudtaser-ebpf:latest"


# Rights.


@pytest.mark.parametrize(
    ("name", "rights"),
    [
        ("cloudtaser-ebpf", {"pods": ["get", "list", "watch"], "events": ["create", "patch"]}),
        ("cloudtaser-ebpf-node-signals", {"nodes": ["get", "patch"]}),
    ],
)
def test_the_agent_may_do_no_more_than_it_does(name, rights):
    role, binding = only("ClusterRole", name), only("ClusterRoleBinding", name)

    assert role["rules"] == [
        {"apiGroups": [""], "resources": [resource], "verbs": verbs} for resource, verbs in rights.items()
    ]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("ClusterRole", name)
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": POD["serviceAccountName"], "namespace": NAMESPACE}
    ]


def test_there_are_no_other_roles():
    roles = {document["kind"] for document in DOCUMENTS if "Role" in document["kind"]}

    assert roles == {"ClusterRole", "ClusterRoleBinding"}
    assert sum(document["kind"] == "ClusterRole" for document in DOCUMENTS) == 2
    assert only("ServiceAccount")["metadata"]["name"] == POD["serviceAccountName"]


# Configuration.


@pytest.fixture
def configured(tmp_path):
    """Return a function that loads a ConfigMap's text as the agent does in its pod."""

    def configured(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return load({}, environment() | {"CLOUDTASER_EBPF_CONFIG": str(path)}, "the-pod")

    return configured


def environment():
    """Return the variables that the pod gets on a node called the-node."""
    return {each["name"]: each.get("value", "the-node") for each in CONTAINER["env"]}


DEFAULTS = replace(load({}, {}, "the-node"), metrics_address=Address(host="0.0.0.0", port=9090))


def test_the_configuration_as_it_is_has_the_defaults_and_serves_the_pod(configured):
    assert configured(CONFIG) == DEFAULTS


def test_every_default_that_is_shown_is_the_default(configured):
    shown = COMMENTED.sub(r"\1", CONFIG)

    assert configured(shown) == DEFAULTS
    # What the comments show is what would be set, key by key: nothing passes by being left out.
    assert set(loaded(shown)[0]) == {option.key for option in OPTIONS} - NOT_FOR_A_CLUSTER
    assert all(value is not None for value in loaded(shown)[0].values())


def test_a_default_that_is_not_would_be_seen(configured):
    assert configured(COMMENTED.sub(r"\1", CONFIG).replace("mode: enforce", "mode: strict")) != DEFAULTS


def test_what_has_no_place_there_is_named():
    last = CONFIG.rpartition("Not to be set here")[2]

    assert set(re.findall(r"[a-z-]+", last)) > NOT_FOR_A_CLUSTER


def test_what_takes_a_restart_is_told_apart():
    live, after_restart = (IN_FORCE.findall(COMMENTED.sub(r"\1", part)) for part in CONFIG.split("# Part 2"))

    assert set(live) == {option.key for option in OPTIONS if option.live} - NOT_FOR_A_CLUSTER
    assert set(after_restart) == {option.key for option in OPTIONS if not option.live} - NOT_FOR_A_CLUSTER


def test_every_setting_has_a_comment_above_it():
    lines = CONFIG.splitlines()
    bare = [
        line
        for before, line in pairwise(lines)
        if re.match(r"#?[a-z-]+:", line) and not before.startswith("# ")
    ]

    assert bare == []


def test_the_agent_reads_the_file_that_is_mounted():
    (mount,) = (each for each in CONTAINER["volumeMounts"] if each["name"] == "config")
    (volume,) = (each for each in POD["volumes"] if each["name"] == "config")

    # As a folder: what is mounted by subPath never changes.
    assert "subPath" not in mount
    assert volume["configMap"] == {"name": "cloudtaser-ebpf"}
    assert file_path({}, environment()) == Path(mount["mountPath"]) / "config.yaml"


def test_the_socket_is_where_the_next_agent_finds_it():
    (mount,) = (each for each in CONTAINER["volumeMounts"] if each["name"] == "run")
    (volume,) = (each for each in POD["volumes"] if each["name"] == "run")

    assert Path(mount["mountPath"]) == Path(volume["hostPath"]["path"]) == DEFAULTS.socket_path.parent


def test_each_variable_is_one_of_the_agents():
    by_name = {each["name"]: each for each in CONTAINER["env"]}

    assert set(by_name) == {"CLOUDTASER_EBPF_CONFIG", "NODE_NAME"}
    assert by_name["NODE_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert POD["enableServiceLinks"] is False


# The page for operators.


@pytest.mark.parametrize(
    "name",
    [
        f'{pods.INJECT}: "true"',
        f"{pods.MODE}: strict",
        f"{pods.ACTION_PREFIX}proc-environ: kill",
        f"label `{node_signals.LAYER_LABEL}`",
        f"annotation `{node_signals.SELFTEST_ANNOTATION}`",
        f"annotation `{node_signals.AGENT_ANNOTATION}`",
        f"{node_signals.TAINT_KEY}=true:{node_signals.TAINT_EFFECT}",
    ],
)
def test_the_page_names_what_the_agent_knows(name):
    assert name in PAGE.read_text()


def test_the_agent_takes_every_setting_that_the_page_advises(configured):
    settings = dict(re.findall(r"`([a-z-]+): (\S+)`", PAGE.read_text()))
    del settings["degraded"]  # what /readyz says

    differing = {key: configured(f"{key}: {value}") != configured("") for key, value in settings.items()}

    assert differing == dict.fromkeys(settings, True)
    assert len(settings) > 5
