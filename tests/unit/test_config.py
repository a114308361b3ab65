import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import Config, file_path, load
from agent.errors import ConfigError
from agent.options import OPTIONS, Address, UnknownPods
from agent.vectors import BY_ID, CATALOGUE, Action, Layer, Mode

DEFAULTS = Config(
    mode=Mode.ENFORCE,
    layer=None,
    actions={},
    protect_exe=("cloudtaser-wrapper",),
    protect_pid=(),
    exempt_exe=(),
    namespaces=("*",),
    allow_weaker=False,
    unknown_pods=UnknownPods.PROTECT,
    metrics_address=Address(host="127.0.0.1", port=9090),
    socket_path=Path("/run/cloudtaser/agent.sock"),
    node="the-host",
    standalone=False,
    kubeconfig=None,
    node_signals=True,
    pod_events=True,
    require_effective=False,
    reactive_kill=True,
    log_all=False,
    events_per_second=10,
    max_processes=16384,
    ring_bytes=1 << 20,
)


@pytest.fixture
def configure(tmp_path):
    """Return a function that loads from flags, a file's text and variables."""

    def configure(flags=None, text=None, environ=None):
        flags = dict(flags or {})
        if text is not None:
            path = tmp_path / "agent.yaml"
            path.write_text(text)
            flags["config"] = str(path)
        return load(flags, environ or {}, "the-host")

    return configure


@pytest.fixture
def mistakes(configure, tmp_path):
    """Return a function like configure that returns the mistakes, the file's folder left out."""

    def mistakes(*args, **kwargs):
        with pytest.raises(ConfigError) as caught:
            configure(*args, **kwargs)
        return [mistake.replace(f"{tmp_path}/", "") for mistake in caught.value.mistakes]

    return mistakes


def test_without_any_source_there_are_defaults(configure):
    assert configure() == DEFAULTS


def test_flags_that_were_not_given_and_flags_of_others_change_nothing(configure):
    flags = dict.fromkeys((option.field for option in OPTIONS), None)

    assert configure(flags | {"command": "run", "json": True, "config": None}) == DEFAULTS


@pytest.mark.parametrize(
    ("variable", "key", "text", "field", "expected"),
    [
        ("ENFORCE_MODE", "mode", "detect", "mode", Mode.DETECT),
        ("ENFORCE_MODE", "mode", "strict", "mode", Mode.STRICT),
        ("CLOUDTASER_EBPF_LAYER", "layer", "fmod_ret", "layer", Layer.FMOD_RET),
        ("CLOUDTASER_EBPF_LAYER", "layer", "auto", "layer", None),
        ("CLOUDTASER_EBPF_PROTECT_EXE", "protect-exe", "vault, /opt/w", "protect_exe", ("vault", "/opt/w")),
        ("CLOUDTASER_EBPF_PROTECT_PID", "protect-pid", "7, 8,7,", "protect_pid", (7, 8)),
        ("CLOUDTASER_EBPF_EXEMPT_EXE", "exempt-exe", "/usr/bin/crictl", "exempt_exe", ("/usr/bin/crictl",)),
        (
            "CLOUDTASER_EBPF_VECTORS",
            "vectors",
            "proc-mem=deny,proc-maps=detect",
            "actions",
            {"proc-mem": Action.DENY, "proc-maps": Action.DETECT},
        ),
        (
            "CLOUDTASER_EBPF_NAMESPACES",
            "namespaces",
            "prod-*, !prod-[a-c]?",
            "namespaces",
            ("prod-*", "!prod-[a-c]?"),
        ),
        ("CLOUDTASER_EBPF_ALLOW_WEAKER", "allow-weaker", "true", "allow_weaker", True),
        ("CLOUDTASER_EBPF_UNKNOWN_PODS", "unknown-pods", "ignore", "unknown_pods", UnknownPods.IGNORE),
        (
            "CLOUDTASER_EBPF_METRICS_ADDRESS",
            "metrics-address",
            "0.0.0.0:80",
            "metrics_address",
            Address(host="0.0.0.0", port=80),
        ),
        ("CLOUDTASER_EBPF_SOCKET_PATH", "socket-path", "/tmp/s", "socket_path", Path("/tmp/s")),
        ("NODE_NAME", "node", "node-1.example", "node", "node-1.example"),
        ("CLOUDTASER_EBPF_STANDALONE", "standalone", "true", "standalone", True),
        ("CLOUDTASER_EBPF_KUBECONFIG", "kubeconfig", "/etc/k8s.conf", "kubeconfig", Path("/etc/k8s.conf")),
        ("CLOUDTASER_EBPF_NODE_SIGNALS", "node-signals", "false", "node_signals", False),
        ("CLOUDTASER_EBPF_POD_EVENTS", "pod-events", "false", "pod_events", False),
        ("CLOUDTASER_EBPF_REQUIRE_EFFECTIVE", "require-effective", "TRUE", "require_effective", True),
        ("REACTIVE_KILL", "reactive-kill", "false", "reactive_kill", False),
        ("LOG_ALL", "log-all", "true", "log_all", True),
        ("CLOUDTASER_EBPF_EVENTS_PER_SECOND", "events-per-second", "3", "events_per_second", 3),
        ("CLOUDTASER_EBPF_MAX_PROCESSES", "max-processes", "1024", "max_processes", 1024),
        ("CLOUDTASER_EBPF_RING_BYTES", "ring-bytes", "4096", "ring_bytes", 4096),
    ],
)
def test_everything_can_be_set_by_variable_flag_and_file(configure, variable, key, text, field, expected):
    by_variable = configure(environ={variable: text})
    by_flag = configure({field: text})
    by_file = configure(text=f"{key}: {text}")

    assert getattr(by_variable, field) == expected
    assert by_variable == by_flag == by_file == replace(DEFAULTS, **{field: expected})


def test_the_table_above_is_complete():
    parameters = test_everything_can_be_set_by_variable_flag_and_file.pytestmark[0].args[1]

    assert {(variable, key) for variable, key, *_ in parameters} == {
        (option.environment, option.key) for option in OPTIONS
    }
    assert all(option.help for option in OPTIONS)


def test_what_sizes_or_places_the_agent_takes_a_restart_and_what_decides_does_not():
    assert {option.key for option in OPTIONS if option.live} == {
        *("mode", "vectors", "protect-exe", "exempt-exe", "reactive-kill", "log-all", "events-per-second"),
        *("namespaces", "allow-weaker", "unknown-pods", "pod-events"),
    }


def test_yaml_has_lists_mappings_numbers_and_booleans(configure):
    text = """
        protect-exe: [vault, /opt/wrapper]
        protect-pid: [7]
        vectors: {proc-mem: detect, proc-stack: kill}
        standalone: true
        ring-bytes: 8192
    """

    assert configure(text=text) == replace(
        DEFAULTS,
        protect_exe=("vault", "/opt/wrapper"),
        protect_pid=(7,),
        actions={"proc-mem": Action.DETECT, "proc-stack": Action.KILL},
        standalone=True,
        ring_bytes=8192,
    )


def test_an_empty_file_says_nothing(configure):
    assert configure(text="# nothing yet\n") == DEFAULTS


@pytest.mark.parametrize("key", [option.key for option in OPTIONS])
def test_a_key_without_a_value_says_nothing(configure, key):
    assert configure(text=f"{key}:\n  # - everything here is commented out\n") == DEFAULTS


def test_a_key_without_a_value_leaves_what_the_environment_says(configure):
    assert configure(text="mode:", environ={"ENFORCE_MODE": "detect"}).mode is Mode.DETECT


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("namespaces: ['*']", ("*",)),
        ("namespaces: [default, prod-*, 7]", ("default", "prod-*", "7")),
        ("namespaces: ['!kube-*', '*']", ("!kube-*", "*")),
        ("namespaces: '!kube-system'", ("*", "!kube-system")),
        ("namespaces: ['!kube-*', '![!a-y]']", ("*", "!kube-*", "![!a-y]")),
        ("namespaces: '[!k]*'", ("[!k]*",)),
    ],
)
def test_who_only_excludes_namespaces_means_all_the_others(configure, text, patterns):
    assert configure(text=text).namespaces == patterns


def test_flags_win_over_the_file_and_the_file_over_the_environment(configure):
    environ = {"ENFORCE_MODE": "detect", "LOG_ALL": "true", "CLOUDTASER_EBPF_MAX_PROCESSES": "100"}

    config = configure({"mode": "strict"}, "mode: enforce\nlog-all: false", environ)

    assert (config.mode, config.log_all, config.max_processes) == (Mode.STRICT, False, 100)


def test_the_file_can_be_named_by_a_variable(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text("mode: detect")

    assert load({}, {"CLOUDTASER_EBPF_CONFIG": str(path)}, "h").mode is Mode.DETECT


def test_the_file_that_is_read_is_known_before():
    by_variable = {"CLOUDTASER_EBPF_CONFIG": "/variable.yaml"}

    assert file_path({}, {}) is None
    assert file_path({"config": None}, {"CLOUDTASER_EBPF_CONFIG": ""}) is None
    assert file_path({"config": None}, by_variable) == Path("/variable.yaml")
    assert file_path({"config": "/flag.yaml"}, by_variable) == Path("/flag.yaml")


def test_an_empty_variable_says_nothing(configure):
    assert configure(environ={"ENFORCE_MODE": "", "CLOUDTASER_EBPF_CONFIG": ""}) == DEFAULTS


@pytest.mark.parametrize(
    "name",
    [
        "CLOUDTASER_EBPF_SERVICE_HOST",
        "CLOUDTASER_EBPF_SERVICE_PORT_METRICS",
        "CLOUDTASER_EBPF_PORT",
        "CLOUDTASER_EBPF_PORT_9090_TCP_ADDR",
        "CLOUDTASER_EBPF_METRICS_SERVICE_PORT",
        "CLOUDTASER_EBPF_METRICS_PORT_9090_TCP",
        "CLOUDTASER_OTHER",
        "ENFORCE",
    ],
)
def test_variables_that_kubernetes_and_others_set_are_left_alone(configure, name):
    assert configure(environ={name: "tcp://10.0.0.1:9090"}) == DEFAULTS


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("mode", "enforec", "one of detect, enforce, strict, not 'enforec', did you mean 'enforce'?"),
        ("mode", 1, "must be one of detect, enforce, strict, not 1"),
        ("mode", ["x" * 99], "must be one of detect, enforce, strict, not a list"),
        ("layer", "lms", "one of auto, lsm, fmod_ret, tracepoint, not 'lms', did you mean 'lsm'?"),
        ("actions", "proc-mem", "proc-mem: must be one of detect, deny, kill, not ''"),
        ("actions", ["proc-mem"], "must be a mapping of vectors to actions, not ['proc-mem']"),
        ("actions", {"proc-mm": "deny"}, "unknown vector 'proc-mm', did you mean 'proc-mem'?"),
        ("actions", {1: "deny"}, "unknown vector 1"),
        ("actions", {"proc-mem": True}, "proc-mem: must be one of detect, deny, kill, not True"),
        ("standalone", "yes", "must be one of true, false, not 'yes'"),
        ("events_per_second", "0", "must be from 1 to 1000000, not 0"),
        ("events_per_second", "ten", "must be a whole number, not 'ten'"),
        ("events_per_second", True, "must be a whole number, not True"),
        ("events_per_second", "-1", "must be a whole number, not '-1'"),
        ("events_per_second", "٣", "must be a whole number, not '٣'"),
        ("events_per_second", "9" * 5000, "must be a whole number, not a str"),
        ("max_processes", 1.5, "must be a whole number, not 1.5"),
        ("ring_bytes", 5000, "must be a power of two, such as 8192, not 5000"),
        ("ring_bytes", 1024, "must be from 4096 to 268435456, not 1024"),
        ("protect_pid", [0], "must be from 1 to 4194304, not 0"),
        ("protect_exe", [""], "must be a name of 1 to 31 bytes or an absolute path, not ''"),
        ("protect_exe", "..", "must be a name of 1 to 31 bytes or an absolute path, not '..'"),
        ("protect_exe", "é" * 16, f"must be a name of 1 to 31 bytes or an absolute path, not '{'é' * 16}'"),
        ("protect_exe", "a\0b", "must be a name of 1 to 31 bytes or an absolute path, not 'a\\x00b'"),
        ("protect_exe", "bin/sh", "must be the absolute path of a file, not 'bin/sh'"),
        ("exempt_exe", "gdb", "must be the absolute path of a file, not 'gdb'"),
        ("exempt_exe", "/usr/bin/", "must be the absolute path of a file, not '/usr/bin/'"),
        ("namespaces", "Prod", "after a ! to exclude, not 'Prod'"),
        ("namespaces", "a.b", "after a ! to exclude, not 'a.b'"),
        ("namespaces", "!", "after a ! to exclude, not '!'"),
        ("namespaces", "!!a", "after a ! to exclude, not '!!a'"),
        ("namespaces", "a!b", "after a ! to exclude, not 'a!b'"),
        ("namespaces", "[ab", "after a ! to exclude, not '[ab'"),
        ("namespaces", "[]", "after a ! to exclude, not '[]'"),
        ("namespaces", "ab]", "after a ! to exclude, not 'ab]'"),
        ("namespaces", ["a\n"], "after a ! to exclude, not 'a\\n'"),
        ("namespaces", [None], "after a ! to exclude, not None"),
        ("namespaces", [], "must have at least one pattern, such as '*' for every namespace"),
        ("unknown_pods", "protec", "must be one of protect, ignore, not 'protec', did you mean 'protect'?"),
        ("kubeconfig", "~/.kube/config", "must be the absolute path of a file, not '~/.kube/config'"),
        ("socket_path", "/" + "s" * 107, "must have at most 107 bytes, the kernel's limit for sockets"),
        ("node", "a b", "must be a host name, not 'a b'"),
        ("metrics_address", "9090", "such as 0.0.0.0:9090, not '9090'"),
        ("metrics_address", ":9090", "such as 0.0.0.0:9090, not ':9090'"),
        ("metrics_address", "::1:9090", "such as 0.0.0.0:9090, not '::1:9090'"),
        ("metrics_address", "localhost:65536", "such as 0.0.0.0:9090, not 'localhost:65536'"),
    ],
)
def test_a_wrong_value_is_told_with_what_would_be_right(mistakes, field, value, complaint):
    option = next(option for option in OPTIONS if option.field == field)

    (mistake,) = mistakes({field: value})

    assert mistake.startswith(f"--{option.key}: ")
    assert mistake.endswith(complaint)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", Address(host="127.0.0.1", port=0)),
        ("localhost:65535", Address(host="localhost", port=65535)),
        ("[::1]:9090", Address(host="::1", port=9090)),
    ],
)
def test_an_address_is_a_host_and_a_port(configure, text, address):
    config = configure({"metrics_address": text})

    assert (config.metrics_host, config.metrics_port) == (address.host, address.port)
    assert str(config.metrics_address) == text


@pytest.mark.parametrize("name", ["CLOUDTASER_EBPF_MODE", "CLOUDTASER_EBPF_ENFORCE_MODE"])
def test_a_variable_with_a_prefix_too_many_is_recognised(mistakes, name):
    assert mistakes(environ={name: "detect"}) == [f"{name}: unknown variable, did you mean 'ENFORCE_MODE'?"]


def test_every_mistake_of_every_source_is_told_at_once(mistakes):
    flags = {"mode": "detct", "protect_pid": ["x", "1", "-2"]}
    text = "vecotrs: {}\nvectors: {proc-mm: deny, proc-mem: dney}\n1: 2"
    environ = {"LOG_ALL": "maybe", "CLOUDTASER_EBPF_PROTECT_EXES": "vault", "CLOUDTASER_EBPF_QQ": "1"}

    assert mistakes(flags, text, environ) == [
        "CLOUDTASER_EBPF_PROTECT_EXES: unknown variable, did you mean 'CLOUDTASER_EBPF_PROTECT_EXE'?",
        "CLOUDTASER_EBPF_QQ: unknown variable",
        "LOG_ALL: must be one of true, false, not 'maybe'",
        "agent.yaml: unknown key 'vecotrs', did you mean 'vectors'?",
        "agent.yaml: vectors: unknown vector 'proc-mm', did you mean 'proc-mem'?",
        "agent.yaml: vectors: proc-mem: must be one of detect, deny, kill, not 'dney', did you mean 'deny'?",
        "agent.yaml: unknown key '1'",
        "--mode: must be one of detect, enforce, strict, not 'detct', did you mean 'detect'?",
        "--protect-pid: must be a whole number, not 'x'",
        "--protect-pid: must be a whole number, not '-2'",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- mode", "agent.yaml: must be a mapping of keys to values, not ['mode']"),
        ("mode: [", "agent.yaml: not YAML: while parsing a flow node"),
        ("!!python/name:os.system", "agent.yaml: not YAML: could not determine a constructor"),
        ("mode: detect\nlayer", "agent.yaml: not YAML: while scanning a simple key"),
        # What PyYAML lets through from below.
        ("node: 2024-13-45", "agent.yaml: not YAML: month must be in 1..12"),
        ("ring-bytes: " + "9" * 5000, "agent.yaml: not YAML: Exceeds the limit"),
        ("mode: " + "[" * 5000, "agent.yaml: not YAML: maximum recursion depth exceeded"),
        ("mode: !!bool maybe", "agent.yaml: not YAML: 'maybe'"),
        ("#" * 65537, "agent.yaml: must have at most 65536 bytes"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(mistakes, text, complaint):
    (mistake,) = mistakes(text=text)

    assert mistake.startswith(complaint)
    assert "\n" not in mistake


@pytest.mark.parametrize(
    "value", ["*", "*-prod", "!kube-system", "[*, default]", "[!kube-system]", "[a, !b]"]
)
def test_a_pattern_that_yaml_takes_for_itself_is_told_how_to_mend(mistakes, value):
    (mistake,) = mistakes(text=f"namespaces: {value}")

    assert mistake.startswith("agent.yaml: not YAML: ")
    assert mistake.endswith(" (put quotes around a value that begins with * or !)")


def test_other_mistakes_in_yaml_have_nothing_to_do_with_quotes(mistakes):
    (mistake,) = mistakes(text="mode: a: b")

    assert "quotes" not in mistake


def test_a_file_that_is_not_there_is_told(mistakes):
    assert mistakes({"config": "/no/such"}) == ["/no/such: cannot be read: No such file or directory"]


def test_without_a_file_yaml_is_not_imported():
    program = "import sys, agent.config as c; c.load({}, {}, 'h'); sys.exit('yaml' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("vector", CATALOGUE, ids=lambda vector: vector.id)
@pytest.mark.parametrize("mode", Mode)
def test_the_preset_decides_where_nothing_else_does(vector, mode):
    assert replace(DEFAULTS, mode=mode).action(vector) is vector.action(mode)


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.STRICT])
def test_a_vectors_own_action_wins_over_the_preset(mode):
    config = replace(DEFAULTS, mode=mode, actions={"proc-maps": Action.KILL, "proc-mem": Action.DETECT})

    assert config.action(BY_ID["proc-maps"]) is Action.KILL
    assert config.action(BY_ID["proc-mem"]) is Action.DETECT


def test_detect_blocks_nothing_whatever_else_is_set():
    config = replace(DEFAULTS, mode=Mode.DETECT, actions={"proc-maps": Action.KILL})

    assert config.action(BY_ID["proc-maps"]) is Action.DETECT


@pytest.mark.parametrize("asked", Action)
def test_without_reactive_kill_a_kill_is_a_deny_wherever_it_comes_from(asked):
    config = replace(DEFAULTS, reactive_kill=False, actions={"proc-mem": asked})

    assert config.action(BY_ID["proc-mem"]) is min(asked, Action.DENY)
    assert config.action(BY_ID["ptrace-attach"]) is Action.DENY


def test_log_all_is_no_limit_in_the_kernels_terms():
    assert DEFAULTS.rate_burst == 10
    assert replace(DEFAULTS, log_all=True).rate_burst == 0
