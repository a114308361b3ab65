"""The layers that this machine's kernel may lack, in guests that count instructions.

QEMU runs a guest with -icount shift=0: then the guest's clock advances by one nanosecond with each
instruction, so that what the benchmark takes for nanoseconds are instructions. That is a measure of the
work added to a call, not of its time, and hardly varies on a busy machine.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import calls, programs
from bench.calls import Costs
from tests.vm import boots, guest, kernels

_COUNTING = ("-icount", "shift=0")
# A boot, three or six starts of the agent, and the calls, all emulated one instruction at a time.
_GUEST_S = 20 * 60


class GuestFailedError(Exception):
    """A guest ran and its benchmark failed; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """A kernel, how it is booted, and the layers that are measured there."""

    release: str
    append: str
    layers: tuple[str, ...]


BOOTS = (
    Boot(release="bookworm", append=boots.ADVISED, layers=("lsm",)),
    Boot(release="bookworm", append=boots.WITHOUT_BPF, layers=("fmod_ret", "tracepoint")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestCosts:
    """What one boot told."""

    kernel: str
    append: str
    seconds: float
    costs: tuple[Costs, ...]


def measure(boot: Boot, folder: Path, tell: Callable[[str], None]) -> GuestCosts:
    """Boot a guest and measure its layers; `folder` is for this boot alone."""
    kernel = kernels.ensure(boot.release)
    tell(f"guest {kernel.version}, counting instructions: {', '.join(boot.layers)}")
    built, result = folder / "programs", folder / "result.json"
    built.mkdir(parents=True)
    programs.build(built)
    script = Path(__file__).with_name("in_guest.py")
    done = guest.run(
        kernel,
        append=boot.append,
        command=("python", str(script), str(built), str(result), *boot.layers),
        share=folder,
        timeout_s=_GUEST_S,
        cpus=1,  # only one processor's instructions can be counted
        qemu_options=_COUNTING,
    )
    if done.exit_code:
        told = " | ".join(guest.tail(done.log_text, 3).splitlines())
        raise GuestFailedError(f"the benchmark in the guest ended with {done.exit_code}: {told}")
    costs = tuple(calls.from_json(each) for each in json.loads(result.read_text()))
    return GuestCosts(kernel=kernel.version, append=boot.append, seconds=done.seconds, costs=costs)
