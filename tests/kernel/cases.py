"""What is attacked how: every vector, its files and requests, both ABIs, and the doors to each."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from agent.btf import Btf
from agent.hooks import HOOKS
from agent.libbpf import Libbpf
from agent.preflight import target_id
from agent.vectors import BY_ID, Action, Layer, Mode, outcome
from tests.kernel.build import ABIS

LAYER = Layer[os.environ.get("CLOUDTASER_TEST_LAYER", "tracepoint").upper()]
# For machines that are twenty times slower: every vector, file and ABI all the same, the other doors for
# 64-bit attackers alone, and under `detect` only the way in that everybody takes.
SHORT = os.environ.get("CLOUDTASER_TEST_SHORT") == "1"
TRIALS = int(os.environ.get("CLOUDTASER_TEST_TRIALS", "1000"))

PLAIN = "plain"
_MAPS = ("maps", "smaps", "smaps_rollup", "numa_maps", "pagemap", "map_files", "auxv", "clear_refs")
# Ways to open the same file; what reads it afterwards is pread, or the ring for io-uring.
_PATHS = (
    "thread",
    "thread-as-process",
    "open",
    "openat2",
    "other-proc-mount",
    "bind-mount",
    "dirfd",
    "symlink",
)
# Ways in which the one that opens is not the one that reads, or is not seen opening.
_DETOURS = ("reopen", "io-uring", "threads", "shared-files")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of attack; `way` is the file of /proc/P, or the request where a vector has several."""

    vector: str
    way: str = ""
    abi: str = "64"
    door: str = PLAIN

    def __str__(self) -> str:
        """Name the test."""
        return ":".join(filter(None, (self.vector, self.way, self.abi, self.door)))

    @property
    def trials(self) -> int:
        """All for the way in that everybody takes, a tenth for each other door to the same place."""
        return TRIALS if self.door == PLAIN else max(10, TRIALS // 10)

    @property
    def readers(self) -> int:
        """How many tasks of one trial may make an attempt that is counted, when the first one is stopped."""
        return 2 if self.door == "threads" else 1

    def action(self, mode: Mode) -> Action:
        """What the preset asks for."""
        return BY_ID[self.vector].action(mode)

    def outcome(self, mode: Mode) -> str:
        """What comes of it on this layer, in the word that events and metrics use."""
        return outcome(self.action(mode), LAYER).name.lower()


def _both_abis(vector: str, way: str = "", *doors: str) -> Iterator[Case]:
    for abi in ABIS:
        for door in (PLAIN, *(doors if abi == "64" or not SHORT else ())):
            yield Case(vector=vector, way=way, abi=abi, door=door)


def _all() -> Iterator[Case]:
    yield from _both_abis("ptrace-attach", "attach", "thread")
    yield from _both_abis("ptrace-attach", "seize", "thread")
    yield from _both_abis("ptrace-traceme", "self")
    yield from _both_abis("ptrace-traceme", "exec")
    yield from _both_abis("ptrace-traceme", "seize")
    yield from _both_abis("process-vm-read", "", "thread")
    yield from _both_abis("process-vm-write", "", "thread")
    yield from _both_abis("proc-mem", "mem", *_PATHS, *_DETOURS)
    yield from _both_abis("proc-mem", "write")
    yield from _both_abis("proc-environ", "environ", *_PATHS, *_DETOURS)
    yield from _both_abis("proc-maps", "maps", *_PATHS, *_DETOURS)
    for file in _MAPS[1:]:
        yield from _both_abis("proc-maps", file)
    yield from _both_abis("proc-stack", "syscall", *_PATHS, *_DETOURS)
    for file in ("stack", "personality"):
        yield from _both_abis("proc-stack", file)
    yield from _both_abis("pidfd-getfd", "", "threads", "shared-files")


# What the tracepoint layer does not stop. It kills after the open, which is late for a task that shares the
# table of descriptors, and does not see an open through io_uring. A read of memory is stopped all the same,
# by its own tracepoint; a read of maps and stack, and of a stolen descriptor, has none.
_LATE = {
    ("proc-maps", "threads"),
    ("proc-maps", "shared-files"),
    ("proc-maps", "io-uring"),
    ("proc-stack", "threads"),
    ("proc-stack", "shared-files"),
    ("proc-stack", "io-uring"),
    ("pidfd-getfd", "threads"),
    ("pidfd-getfd", "shared-files"),
}


def _has_second_line() -> bool:
    with Btf(Libbpf()) as btf:
        return target_id(btf, HOOKS["remote_memory"]) is not None


# A descriptor that is older than the protection is seen at its reads only, by a tracepoint of 5.11.
HAS_SECOND_LINE = _has_second_line()


def is_hole(case: Case) -> bool:
    """Whether the layer under test is known not to stop this."""
    return LAYER is Layer.TRACEPOINT and (case.vector, case.door) in _LATE


ALL_CASES = tuple(_all())
CASES = tuple(case for case in ALL_CASES if not is_hole(case))
HOLES = tuple(case for case in ALL_CASES if is_hole(case))
