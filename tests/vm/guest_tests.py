"""Runs the kernel tests in one boot, and reads back how they went."""

import os
import shlex
import sys
import threading
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from tests.vm import guest, kernels
from tests.vm.boots import Boot

# The tests of one layer take minutes under emulation; this only has to end a guest that never would.
LAYER_S = 45 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """What the tests of one layer came to: how many ran, and a text for each that did not pass."""

    layer: str
    ran: int
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether tests ran and all of them passed: an empty run proves nothing."""
        return self.ran > 0 and not self.failures

    def __str__(self) -> str:
        head = f"{self.layer}: {self.ran} tests ran, {len(self.failures)} did not pass"
        return "\n\n".join((head, *self.failures))


@dataclass(frozen=True, slots=True, kw_only=True)
class BootReport:
    """What one boot came to, as text for whoever has to find out why."""

    boot: Boot
    kernel: str
    exit_code: int
    seconds: float
    layers: tuple[LayerReport, ...]
    log_text: str

    @property
    def passed(self) -> bool:
        """Whether every layer passed."""
        return self.exit_code == 0 and all(layer.passed for layer in self.layers)

    def __str__(self) -> str:
        head = (
            f"{self.boot.name} on {self.kernel}, booted with {self.boot.append}: exit code {self.exit_code} "
            f"after {self.seconds:.0f} s"
        )
        log = f"--- the end of the guest's log\n{guest.tail(self.log_text)}"
        return "\n\n".join((head, *(str(layer) for layer in self.layers), log))


def work_folder() -> Path:
    """Return where boots keep logs and results: CLOUDTASER_VM_WORK, or .cache/vm in the checkout."""
    return Path(os.environ.get("CLOUDTASER_VM_WORK") or kernels.CHECKOUT / ".cache" / "vm").resolve()


def run(boot: Boot, *, work: Path, compiled: Path, cpus: int, stop: threading.Event) -> BootReport:
    """Boot one row and run the kernel tests of its layers in it, with the C programs in `compiled`."""
    work.mkdir(parents=True, exist_ok=True)
    for layer in boot.layers:
        # Left by an earlier run, they would speak for this one if it fell over early.
        _junit(work, layer).unlink(missing_ok=True)
        _matrix(work, layer).unlink(missing_ok=True)
    kernel = kernels.ensure(boot.release)
    result = guest.run(
        kernel,
        append=boot.append,
        command=["sh", "-c", _script(boot, work)],
        share=work,
        timeout_s=LAYER_S * len(boot.layers),
        environment={
            "CLOUDTASER_KERNEL_TESTS": "require",
            "CLOUDTASER_TEST_COMPILED": str(compiled),
            "CLOUDTASER_TEST_SHORT": os.environ.get("CLOUDTASER_TEST_SHORT", "1"),
            "CLOUDTASER_TEST_TRIALS": os.environ.get("CLOUDTASER_TEST_TRIALS", "100"),
        },
        cpus=cpus,
        stop=stop,
    )
    return BootReport(
        boot=boot,
        kernel=kernel.version,
        exit_code=result.exit_code,
        seconds=result.seconds,
        layers=tuple(read_junit(layer, _junit(work, layer)) for layer in boot.layers),
        log_text=result.log_text,
    )


def _script(boot: Boot, work: Path) -> str:
    # One layer's failure does not keep the next from being tested.
    lines = ["failed=0"]
    marks = "not own_agent" if boot.cluster else "not own_agent and not cluster"
    for layer in boot.layers:
        command = [
            "env",
            f"CLOUDTASER_TEST_LAYER={layer}",
            f"CLOUDTASER_MATRIX_OUT={_matrix(work, layer)}",
            *(sys.executable, "-m", "pytest", "tests/kernel", "-q"),
            *("-p", "no:cacheprovider", "-p", "no:randomly", "-m", marks),
            f"--junit-xml={_junit(work, layer)}",
        ]
        lines.append(f"{shlex.join(command)} || failed=1")
    lines.append("exit $failed")
    return "\n".join(lines)


def _junit(work: Path, layer: str) -> Path:
    return work / f"junit-{layer}.xml"


def _matrix(work: Path, layer: str) -> Path:
    return work / f"matrix-{layer}.json"


def read_junit(layer: str, path: Path) -> LayerReport:
    """Read pytest's report; one that is missing or cut short counts as a failure."""
    try:
        cases = list(ET.parse(path).getroot().iter("testcase"))
    except (FileNotFoundError, ET.ParseError) as err:
        return LayerReport(layer=layer, ran=0, failures=(f"no report from pytest: {err}",))
    skipped = sum(case.find("skipped") is not None for case in cases)
    failures = (_failure(case) for case in cases)
    return LayerReport(layer=layer, ran=len(cases) - skipped, failures=tuple(filter(None, failures)))


def _failure(case: ET.Element) -> str:
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            name = f"{case.get('classname', '')}.{case.get('name', '')}"
            return f"{kind} in {name}\n{guest.tail(found.text or found.get('message') or '')}"
    return ""
