"""The programs and maps in the agent process: load, attach, configure, count, read, let go.

Nothing is pinned: every program, map and link lives as long as a descriptor of this process, so the kernel
is clean however the agent ends.
"""

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agent import abi
from agent.code_paths import code_paths
from agent.errors import AgentError, LoadError
from agent.events import AttemptKey
from agent.hooks import HOOKS, While
from agent.libbpf import Libbpf, ProgInfo, RingSample
from agent.loading import Loaded
from agent.vectors import CATALOGUE, Layer, Outcome

_NOT_COUNTED = abi.MemberFlag.CANARY | abi.MemberFlag.EXITED
# Twice what the largest map of members holds.
_MOST_MEMBERS = 1 << 21

BPF_ANY = 0
BPF_NOEXIST = 1


class Map:
    """One BPF map; keys and values are ctypes objects."""

    def __init__(self, libbpf: Libbpf, descriptor: int) -> None:
        """Wrap `descriptor`, which stays its owner's."""
        self._libbpf = libbpf
        self._descriptor = descriptor

    def update(self, key: Any, value: Any, flags: int = BPF_ANY) -> bool:
        """Set the value of `key`; False where the map is full, or with BPF_NOEXIST has it already."""
        result = self._libbpf.bpf_map_update_elem(
            self._descriptor, ctypes.byref(key), ctypes.byref(value), flags
        )
        if result in (-errno.E2BIG, -errno.ENOMEM, -errno.EEXIST):
            return False
        if result < 0:
            message = f"a BPF map refused an update: {os.strerror(-result)}"
            raise AgentError(message)
        return True

    def lookup(self, key: Any, value: Any) -> bool:
        """Fill `value` with what `key` has; False where it has nothing."""
        found: int = self._libbpf.bpf_map_lookup_elem(
            self._descriptor, ctypes.byref(key), ctypes.byref(value)
        )
        return found == 0

    def delete(self, key: Any) -> bool:
        """Remove `key`; False where it was not there."""
        deleted: int = self._libbpf.bpf_map_delete_elem(self._descriptor, ctypes.byref(key))
        return deleted == 0

    def keys(self, key_type: type[Any], most: int) -> Iterator[Any]:
        """Yield the keys, at most `most`.

        One that is removed meanwhile makes the kernel begin again, so that some come twice and a walk
        under constant change would never end.
        """
        key: Any = None
        following = key_type()
        for _ in range(most):
            last = None if key is None else ctypes.byref(key)
            if self._libbpf.bpf_map_get_next_key(self._descriptor, last, ctypes.byref(following)) != 0:
                return
            key = key_type.from_buffer_copy(following)
            yield key


class Kernel:
    """What this process holds in the kernel.

    `attempts`, `losses`, `protected_processes`, `protected_trees`, `programs_loaded` and `runs_skipped` read
    the truth for metrics at the time of the call, from any thread.
    """

    def __init__(self, libbpf: Libbpf, loaded: Loaded) -> None:
        """Take over the descriptors of `loaded`; nothing is attached yet."""
        self._libbpf = libbpf
        self._loaded = loaded
        self._links: dict[str, int] = {}
        self._on_demand: dict[While, tuple[str, ...]] = {}
        self._records: list[bytes] = []
        self._processors = libbpf.libbpf_num_possible_cpus()
        # Held for as long as the ring: ctypes would free the callback under libbpf's feet.
        self._on_record = RingSample(self._take)
        self._ring = libbpf.ring_buffer__new(
            self._loaded.maps["cloudtaser_ring"], self._on_record, None, None
        )
        if not self._ring:
            message = f"the ring buffer cannot be mapped: {os.strerror(ctypes.get_errno())}"
            raise AgentError(message)

    def map(self, name: str) -> Map:
        """Return the map called `name`."""
        return Map(self._libbpf, self._loaded.maps[name])

    def attach(self, required: Sequence[str], optional: Sequence[str] = ()) -> tuple[str, ...]:
        """Attach all of `required` or nothing, then what is possible of `optional`; return those refused.

        Those that are on demand attach too, to prove that they can, but go with `rest`. The optional ones are
        there while a process is protected.

        Raises:
            LoadError: a required program does not attach; everything is detached again.

        """
        refused: list[str] = []
        for function in (*required, *optional):
            try:
                self._attach(function)
            except LoadError:
                if function not in optional:
                    self.detach()
                    raise
                refused.append(function)
        attached = {
            function: While.PROTECTING if function in optional else HOOKS[function].attached
            for function in self._links
        }
        self._on_demand = {
            demand: tuple(function for function in attached if attached[function] is demand)
            for demand in While
            if demand is not While.RUNNING
        }
        return tuple(refused)

    def rest(self, demand: While) -> None:
        """Detach the programs that are there on `demand`: it has gone."""
        for function in self._on_demand.get(demand, ()):
            link = self._links.pop(function, None)
            if link is not None:
                os.close(link)

    def wake(self, demand: While) -> None:
        """Attach the programs that are there on `demand`, if they are not: it is there, or is going to be.

        Raises:
            LoadError: one does not attach any more.

        """
        for function in self._on_demand.get(demand, ()):
            if function not in self._links:
                self._attach(function)

    def protects(self) -> bool:
        """Return whether any process is protected; cheap enough to ask often."""
        return any(True for _ in self.map("cloudtaser_memb").keys(ctypes.c_uint32, 1))

    def detach(self) -> None:
        """Detach every program; maps and what is in the ring buffer stay readable."""
        self._on_demand = {}
        for link in self._links.values():
            os.close(link)
        self._links.clear()

    def close(self) -> None:
        """Detach and let go of everything. A second call does nothing."""
        self.detach()
        if self._ring:
            self._libbpf.ring_buffer__free(self._ring)
            self._ring = 0
        self._loaded.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when `drain` has something to return."""
        descriptor: int = self._libbpf.ring_buffer__epoll_fd(self._ring)
        return descriptor

    def drain(self) -> list[bytes]:
        """Return the records that are in the ring buffer now."""
        self._libbpf.ring_buffer__consume(self._ring)
        records, self._records = self._records, []
        return records

    def attempts(self, *, selftest: bool = False) -> dict[AttemptKey, int]:
        """Return the number of attempts so far, for every combination; the self-test's are apart."""
        counters = self.map("cloudtaser_cntr")
        counted: dict[AttemptKey, int] = {}
        for vector in CATALOGUE:
            for layer in Layer:
                for outcome in Outcome:
                    slot = (
                        (int(selftest) * abi.MAX_VECTORS + vector.number) * abi.LAYERS + layer
                    ) * abi.OUTCOMES + outcome
                    key = AttemptKey(vector=vector, layer=layer, outcome=outcome)
                    counted[key] = self._per_processor(counters, slot)
        return counted

    def losses(self) -> dict[abi.Loss, int]:
        """Return how many records the kernel could not keep, by reason."""
        losses = self.map("cloudtaser_loss")
        return {loss: self._per_processor(losses, loss) for loss in abi.Loss}

    def members(self) -> dict[int, abi.Member]:
        """Return the protected processes by thread group id: neither zombies nor the self-test's canary."""
        members = self.map("cloudtaser_memb")
        found: dict[int, abi.Member] = {}
        for key in members.keys(ctypes.c_uint32, _MOST_MEMBERS):
            member = abi.Member()
            if members.lookup(key, member) and not member.flags & _NOT_COUNTED:
                found[key.value] = member
        return found

    def protected_processes(self) -> int:
        """Return how many processes are protected."""
        return len(self.members())

    def protected_trees(self) -> int:
        """Return how many trees they form."""
        return len({(member.tree.pid, member.tree.start_ns) for member in self.members().values()})

    def programs_loaded(self) -> int:
        """Return how many programs are attached."""
        return len(self._links)

    def runs_skipped(self) -> int:
        """Return how many runs of a program the kernel skipped, as another task was in the middle of one.

        That is where a program can be preempted; 0 before 5.12, which does not count them.
        """
        return sum(self._runs_skipped(descriptor) for descriptor in list(self._loaded.programs.values()))

    def set_paths(self, kallsyms: Path) -> None:
        """Tell the programs where the functions are that read files of /proc."""
        paths = abi.Paths()
        for slot, path in enumerate(code_paths(kallsyms)):
            paths.path[slot] = abi.Path(start=path.start, end=path.end, path_class=path.path_class)
        self.map("cloudtaser_path").update(ctypes.c_uint32(0), paths)

    def _attach(self, function: str) -> None:
        link = self._libbpf.bpf_raw_tracepoint_open(None, self._loaded.programs[function])
        if link < 0:
            target = HOOKS[function].target
            message = f"{function} does not attach to {target}: {os.strerror(-link)}"
            raise LoadError(message)
        self._links[function] = link

    def _runs_skipped(self, program: int) -> int:
        told, size = ProgInfo(), ctypes.c_uint32(ctypes.sizeof(ProgInfo))
        self._libbpf.bpf_obj_get_info_by_fd(program, ctypes.byref(told), ctypes.byref(size))
        skipped: int = told.recursion_misses
        return skipped

    def _per_processor(self, of: Map, slot: int) -> int:
        values = (ctypes.c_uint64 * self._processors)()
        of.lookup(ctypes.c_uint32(slot), values)
        return sum(values)

    def _take(self, _context: int, data: int, size: int) -> int:
        # Only the copy: an exception in a callback would be swallowed by ctypes.
        self._records.append(ctypes.string_at(data, size))
        return 0
