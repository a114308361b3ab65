"""The programs on this node: what it can do, loaded and attached, with all that they must know.

The agent holds them for as long as it runs, the selftest command for a moment.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent import preflight, selftest
from agent.btf import Btf
from agent.config import Config
from agent.kernel import Kernel
from agent.libbpf import Libbpf
from agent.loading import Loading
from agent.preflight import Plan
from agent.protected import Protected
from agent.selftest import Canary, Trial

_log = logging.getLogger(__name__)

_PAGE_BYTES = 4096


def survey(config: Config) -> Plan:
    """Look at this node and choose a layer, or raise a `NodeError`."""
    libbpf = Libbpf()
    with Btf(libbpf) as btf:
        return preflight.plan(preflight.examine(libbpf, btf), config.layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Armed:
    """Programs that are attached and know what to protect."""

    kernel: Kernel
    protected: Protected
    plan: Plan


@contextmanager
def armed(
    config: Config, plan: Plan, *, announce: Callable[[bytes], None] = lambda _record: None
) -> Iterator[Armed]:
    """Load and attach what `plan` says, protect what runs already; let go of everything at the end.

    Raises:
        NodeError: a program does not compile, load or attach.
        ConfigError: a process that is to be protected does not exist.

    """
    loading = Loading(
        (*plan.required, *plan.optional),
        {"CT_MAX_PROCESSES": config.max_processes, "CT_RING_PAGES": max(1, config.ring_bytes // _PAGE_BYTES)},
    )
    with ExitStack() as undo:
        undo.callback(loading.abandon)
        kernel = Kernel(Libbpf(), loading.finish())
        undo.callback(kernel.close)
        if "remote_memory" in (*plan.required, *plan.optional):
            kernel.set_paths(Path("/proc/kallsyms"))
        protected = Protected(kernel, config, plan.layer, announce=announce)
        protected.configure()
        for refused in kernel.attach(plan.required, plan.optional):
            _log.warning("the second line %s does not attach; the first is complete", refused)
        protected.scan()
        yield Armed(kernel=kernel, protected=protected, plan=plan)


def try_all(armed_programs: Armed, canary: Canary) -> tuple[Trial, ...]:
    """Attack the canary through every vector that the node's layer covers."""
    return selftest.run(
        canary,
        protect=armed_programs.protected.protect,
        forget=armed_programs.protected.forget,
        attempts=lambda: armed_programs.kernel.attempts(selftest=True),
        vectors=[each.vector for each in armed_programs.plan.coverage if each.layer is not None],
    )
