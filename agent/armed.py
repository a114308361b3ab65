"""The programs on this node: what it can do, loaded and attached, with all that they must know.

The agent holds them for as long as it runs, the selftest command for a moment.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent import preflight, selftest
from agent.btf import Btf
from agent.config import Config
from agent.hierarchy import Hierarchy
from agent.hooks import HOOKS
from agent.kernel import Kernel
from agent.libbpf import Libbpf
from agent.loading import Loading
from agent.preflight import Plan
from agent.protected import Home, Protected
from agent.rules import PodRules
from agent.selftest import Canary, Trial

_log = logging.getLogger(__name__)

_PAGE_BYTES = 4096


def survey(config: Config, *, pods: bool = False) -> Plan:
    """Look at this node and choose a layer, or raise a `NodeError`; with `pods`, to follow pods as well."""
    libbpf = Libbpf()
    with Btf(libbpf) as btf:
        return preflight.plan(preflight.examine(libbpf, btf), config.layer, pods=pods)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodsOn:
    """Where pods are told apart on this node, and how the home of a running process is found."""

    hierarchy: Hierarchy
    home_of: Callable[[int], Home]

    def defines(self) -> dict[str, int]:
        """Return what the programs are compiled with."""
        controller = self.hierarchy.controller
        return {} if controller is None else {f"CT_PODS_ON_{controller.upper()}": 1}

    def rules(self) -> PodRules:
        """Return what the programs are told."""
        return PodRules(hierarchy=self.hierarchy.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Armed:
    """Programs that are attached and know what to protect."""

    kernel: Kernel
    protected: Protected
    plan: Plan


@contextmanager
def armed(
    config: Config,
    plan: Plan,
    *,
    announce: Callable[[bytes], None] = lambda _record: None,
    pods: PodsOn | None = None,
) -> Iterator[Armed]:
    """Load and attach what `plan` says, protect what runs already; let go of everything at the end.

    Raises:
        NodeError: a program does not compile, load or attach.
        ConfigError: a process that is to be protected does not exist.

    """
    loading = Loading(
        (*plan.required, *plan.optional),
        {
            "CT_MAX_PROCESSES": config.max_processes,
            "CT_RING_PAGES": max(1, config.ring_bytes // _PAGE_BYTES),
            **(pods.defines() if pods else {}),
        },
    )
    with ExitStack() as undo:
        undo.callback(loading.abandon)
        kernel = Kernel(Libbpf(), loading.finish())
        undo.callback(kernel.close)
        if any(HOOKS[function].kallsyms for function in (*plan.required, *plan.optional)):
            kernel.set_paths(Path("/proc/kallsyms"))
        protected = Protected(
            kernel,
            config,
            plan.layer,
            announce=announce,
            home_of=pods.home_of if pods else lambda _pid: Home(),
            pods=pods.rules() if pods else None,
            root=node_root(config) if pods else Path("/"),
        )
        protected.configure()
        for refused in kernel.attach(plan.required, plan.optional):
            _log.warning("the second line %s does not attach; the first is complete", refused)
        protected.scan()
        yield Armed(kernel=kernel, protected=protected, plan=plan)


def node_root(config: Config, first: Path = Path("/proc/1/root")) -> Path:
    """Return where the node's files are: an agent in a container sees them by the node's `first` process.

    Where that is denied, its own files must do, and it says so if any are configured.
    """
    if os.access(first, os.X_OK):
        return first
    if named := [path for path in (*config.protect_exe, *config.exempt_exe) if "/" in path]:
        _log.warning(
            "%s is denied, so %s is looked for among the agent's own files, not the node's",
            first,
            ", ".join(named),
        )
    return Path("/")


def try_all(armed_programs: Armed, canary: Canary) -> tuple[Trial, ...]:
    """Attack the canary through every vector that the node's layer covers."""
    return selftest.run(
        canary,
        protect=armed_programs.protected.protect,
        forget=armed_programs.protected.forget,
        attempts=lambda: armed_programs.kernel.attempts(selftest=True),
        vectors=[each.vector for each in armed_programs.plan.coverage if each.layer is not None],
    )
