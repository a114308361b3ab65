"""A container's root file system: busybox, and programs of the tests."""

import shutil
from collections.abc import Iterable
from pathlib import Path


def make_root(root: Path, applets: Iterable[str], programs: Iterable[Path]) -> None:
    """Make `root` with these of busybox's applets and these programs in /bin."""
    binaries = root / "bin"
    binaries.mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", binaries / "busybox")
    for applet in applets:
        binaries.joinpath(applet).symlink_to("busybox")
    for program in programs:
        shutil.copy(program, binaries)
