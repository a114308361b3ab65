from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.pods import Container, ContainerKind, Inject, Pod, PodError, parse
from tests.api_server import pod

A, B, C = "a" * 64, "b" * 64, "0123456789abcdef" * 4
HASH = "1f9a94e8e0a3eb9fd3e8b6b1a4a3a9d2"


def annotated(**annotations):
    return parse(pod(annotations={f"cloudtaser.io/{key}": value for key, value in annotations.items()}))


def test_a_pod_is_what_the_api_says_and_no_more():
    raw = pod(
        "web",
        namespace="shop",
        uid="6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        labels={"cloudtaser.io/inject": "true", "app": "web"},
        annotations={
            "cloudtaser.io/ebpf-mode": "strict",
            "cloudtaser.io/ebpf-ptrace": "kill",
            "cloudtaser.io/ebpf-proc-mem": "deny",
            "another.io/ebpf-proc-mem": "no business of ours",
        },
        init={"setup": C},
        containers={"app": A},
        ephemeral={"debugger": B},
    )

    assert parse(raw) == Pod(
        uid="6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        api_uid="6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        namespace="shop",
        name="web",
        inject=Inject.YES,
        mode="strict",
        actions=(("proc-mem", "deny"), ("ptrace", "kill")),
        shared_pids=False,
        containers=(
            Container(id=C, name="setup", kind=ContainerKind.INIT),
            Container(id=A, name="app", kind=ContainerKind.REGULAR),
            Container(id=B, name="debugger", kind=ContainerKind.EPHEMERAL),
        ),
        mistakes=(),
    )


@pytest.mark.parametrize(
    ("label", "annotation", "expected"),
    [
        (None, None, Inject.UNSAID),
        ("true", None, Inject.YES),
        (None, "true", Inject.YES),
        ("true", "true", Inject.YES),
        ("false", None, Inject.NO),
        (None, "false", Inject.NO),
        ("true", "false", Inject.NO),
        ("false", "true", Inject.NO),
        ("false", "maybe", Inject.NO),
        ("maybe", "true", Inject.YES),
        ("maybe", None, Inject.UNSAID),
    ],
)
def test_false_in_either_wins(label, annotation, expected):
    def said(value):
        return None if value is None else {"cloudtaser.io/inject": value}

    assert parse(pod(labels=said(label), annotations=said(annotation))).inject is expected


@pytest.mark.parametrize(
    ("where", "value", "shown"),
    [
        ("labels", "maybe", '"maybe"'),
        ("labels", "True", '"True"'),
        ("annotations", "", '""'),
        ("annotations", "é\n\x1b[2J", r'"\xe9\n\x1b[2J"'),
        ("annotations", "x" * 70, f'"{"x" * 63}…"'),
        ("annotations", True, "a bool"),
    ],
)
def test_what_is_neither_true_nor_false_is_a_mistake(where, value, shown):
    raw = pod()
    raw["metadata"][where] = {"cloudtaser.io/inject": value}

    parsed = parse(raw)

    assert parsed.inject is Inject.UNSAID
    assert parsed.mistakes == (
        f'{where.removesuffix("s")} cloudtaser.io/inject is {shown}, not "true" or "false": ignored',
    )


def test_modes_and_actions_are_told_as_they_are_written():
    parsed = annotated(
        **{"ebpf-mode": "Enforced?", "ebpf-": "x", "ebpf-no-such-vector": "", "inject": "true"}
    )

    assert parsed.mode == "Enforced?"
    assert parsed.actions == (("", "x"), ("no-such-vector", ""))
    assert parsed.mistakes == ()


def test_what_is_no_word_is_no_mode_and_no_action():
    parsed = annotated(**{"ebpf-mode": "x" * 64, "ebpf-ptrace": 1, "ebpf-proc-mem": "kill"})

    assert parsed.mode is None
    assert parsed.actions == (("proc-mem", "kill"),)
    assert parsed.mistakes == (
        f'annotation cloudtaser.io/ebpf-mode is "{"x" * 63}…", not a word: ignored',
        "annotation cloudtaser.io/ebpf-ptrace is a int, not a word: ignored",
    )


def test_nobody_can_make_a_pod_that_is_large():
    parsed = annotated(**{f"ebpf-{number:04}": "kill" for number in range(1000)})

    assert [vector for vector, _ in parsed.actions] == [f"{number:04}" for number in range(64)]
    assert parsed.mistakes == ("1000 annotations cloudtaser.io/ebpf-…, more than 64: the rest is ignored",)


def test_of_many_mistakes_some_are_told():
    parsed = annotated(**{f"ebpf-{number}": "x" * 100 for number in range(10, 30)})

    assert len(parsed.mistakes) == 8
    assert parsed.mistakes[-1] == "13 more like these"
    assert parsed.mistakes[0].startswith("annotation cloudtaser.io/ebpf-10 is ")


@pytest.mark.parametrize(
    ("share", "host", "expected"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
)
def test_pids_may_be_shared_with_the_pod_or_the_host(share, host, expected):
    assert parse(pod(shared_pids=share, host_pid=host)).shared_pids is expected


def test_pids_are_shared_by_a_true_and_nothing_else():
    raw = pod()
    raw["spec"] |= {"hostPID": "true", "shareProcessNamespace": 1}

    assert not parse(raw).shared_pids


@pytest.mark.parametrize("runtime", ["containerd", "cri-o", "docker"])
def test_a_containers_id_is_without_its_runtime(runtime):
    assert [each.id for each in parse(pod(runtime=runtime, containers={"app": A})).containers] == [A]


def test_a_container_that_has_not_started_is_no_mistake():
    raw = pod(containers={"first": "", "second": A})
    raw["status"]["containerStatuses"].append({"name": "third", "containerID": ""})

    parsed = parse(raw)

    assert [each.name for each in parsed.containers] == ["second"]
    assert parsed.mistakes == ()


@pytest.mark.parametrize(
    ("id_", "shown"),
    [
        (A, f'"{A[:63]}…"'),
        ("containerd://", '"containerd://"'),
        (f"containerd:/{A[:10]}", '"containerd:/aaaaaaaaaa"'),
        ("containerd://../../etc", '"containerd://../../etc"'),
        (f"containerd://{A}0", f'"containerd://{A[:50]}…"'),
        (f"containerd://{A}\n", f'"containerd://{A[:50]}…"'),
        (f"containerd://{A.upper()}", f'"containerd://{A[:50].upper()}…"'),
        (17, "a int"),
    ],
)
def test_a_malformed_id_is_a_mistake_and_the_others_stay(id_, shown):
    raw = pod(containers={"app": A})
    raw["status"]["containerStatuses"].insert(0, {"name": "bad", "containerID": id_})

    parsed = parse(raw)

    assert [each.name for each in parsed.containers] == ["app"]
    assert parsed.mistakes == (f'container "bad" has the id {shown}, not understood: ignored',)


def test_a_container_has_a_name():
    raw = pod()
    raw["status"]["containerStatuses"] = [{"containerID": f"containerd://{A}"}]

    assert parse(raw).containers == ()
    assert "container a NoneType has the id" in parse(raw).mistakes[0]


@pytest.mark.parametrize("status", [None, {}, [], {"containerStatuses": None}, {"containerStatuses": [None]}])
def test_a_pod_may_have_no_status_yet(status):
    assert parse(pod() | {"status": status}).containers == ()


def test_a_pod_may_be_nothing_but_its_identity():
    raw = {"metadata": {"uid": "u", "namespace": "ns", "name": "n"}}

    parsed = parse(raw)

    assert (parsed.uid, parsed.api_uid, parsed.namespace, parsed.name) == ("u", "u", "ns", "n")
    assert (parsed.inject, parsed.mode, parsed.actions) == (Inject.UNSAID, None, ())
    assert parsed.mistakes == ()


def test_the_mirror_of_a_static_pod_has_its_cgroups_uid():
    parsed = parse(pod(uid="6ba7b810", annotations={"kubernetes.io/config.mirror": HASH}))

    assert (parsed.uid, parsed.api_uid, parsed.mistakes) == (HASH, "6ba7b810", ())


# Whoever makes a pod could name another pod's uid, and be taken for it.
@pytest.mark.parametrize("mirror", ["6ba7b810-9dad-11d1-80b4-00c04fd430c8", HASH + "\n", "", 5])
def test_a_pod_cannot_pass_for_another(mirror):
    parsed = parse(pod(uid="its-own", annotations={"kubernetes.io/config.mirror": mirror}))

    assert parsed.uid == "its-own"
    assert "not a static pod's hash: not believed" in parsed.mistakes[0]


@pytest.mark.parametrize("key", ["uid", "namespace", "name"])
@pytest.mark.parametrize("value", [None, "", 7, {}])
def test_what_has_no_identity_is_no_pod(key, value):
    raw = pod()
    raw["metadata"][key] = value

    with pytest.raises(PodError, match=rf"^the API server sent a pod without {key}$"):
        parse(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["cloudtaser.io/inject", "cloudtaser.io/ebpf-mode", "cloudtaser.io/ebpf-x", "kubernetes.io/config.mirror"]
)
WORDS = JSON | st.dictionaries(KEYS | st.text(), JSON, max_size=4)


@given(labels=WORDS, annotations=WORDS, spec=JSON, status=JSON, statuses=JSON, entry=JSON)
def test_whatever_comes_is_a_pod_or_refused(labels, annotations, spec, status, statuses, entry):
    metadata = {"uid": "u", "namespace": "ns", "name": "n", "labels": labels, "annotations": annotations}
    shaped = {
        "containerStatuses": [entry, {"name": entry, "containerID": entry}],
        "initContainerStatuses": statuses,
    }
    for state in (status, shaped):
        parsed = parse({"metadata": metadata, "spec": spec, "status": state})
        assert all(line.replace("…", "").isascii() and line.isprintable() for line in parsed.mistakes)
    with suppress(PodError):
        parse({"metadata": labels})
    hash(parsed)
