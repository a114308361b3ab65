"""Starts the boots that the selected tests ask for, a few at a time, and lets each test wait for its own."""

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel.build import compile_all
from tests.vm import guest_tests
from tests.vm.boots import BOOTS, Boot
from tests.vm.guest_tests import BootReport

# Two virtual processors on one real one spend their time waiting for each other: emulated, such a guest
# is three to five times slower. So guests never have more processors, taken together, than the machine.
MOST_CPUS = 2  # enough for an attack and its victim to run at the same time


class Boots:
    """The boots of one session, each running or waiting for its turn in a thread of its own."""

    def __init__(self, boots: list[Boot], *, compiled: Path, at_once: int) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="boot")
        cpus = max(1, min(MOST_CPUS, (os.cpu_count() or 1) // at_once))
        self._reports: dict[Boot, Future[BootReport]] = {
            boot: self._pool.submit(
                guest_tests.run,
                boot,
                work=guest_tests.work_folder() / boot.name,
                compiled=compiled,
                cpus=cpus,
                stop=self._stop,
            )
            for boot in boots
        }

    def report(self, boot: Boot) -> BootReport:
        """Wait for a boot and return its report, or raise what became of the guest."""
        return self._reports[boot].result()

    def close(self) -> None:
        """End the guests that still run and forget those that did not start."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def boots(request: pytest.FixtureRequest) -> Iterator[Boots]:
    asked = [
        item.callspec.params["boot"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "boots" in item.fixturenames
    ]
    # In the table's order, whatever the tests' is.
    selected = [boot for boot in BOOTS if boot in asked]
    # Once and here: in a guest the compiler takes a minute.
    compiled = guest_tests.work_folder() / "compiled"
    shutil.rmtree(compiled, ignore_errors=True)
    compile_all(compiled)
    running = Boots(selected, compiled=compiled, at_once=int(os.environ.get("CLOUDTASER_VM_JOBS", "2")))
    try:
        yield running
    finally:
        running.close()
