"""Debian 13's user space in a folder: its Python, BCC 0.31 and libbpf, for the agent to run in.

Made by mmdebstrap from the mirror that this machine's own apt uses, kept beside the kernels.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.vm.kernels import CHECKOUT, KEYRING, cache_folder

RELEASE = "trixie"
# The agent's run-time dependencies as Debian packages: pip needs a network that a guest does not have.
PACKAGES = "python3-bpfcc,python3-prometheus-client,python3-psutil,python3-yaml,libbpf1"

# In a mount namespace of its own, so that nothing is left mounted whatever happens. The checkout is found
# through a .pth file: the agent starts its children isolated from the environment.
ENTER = """\
set -eu
root=$1; checkout=$2; shift 2
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
mount --bind "$checkout" "$root/opt/cloudtaser"
exec chroot "$root" "$@"
"""


def ensure(mirror: str) -> Path:
    """Return the root folder of the user space, making it first if it is not there yet."""
    root = cache_folder() / "userland" / RELEASE
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.exists():
            return root
        partial = root.with_suffix(".partial")
        if partial.exists():
            shutil.rmtree(partial)
        subprocess.run(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                "--format=directory",
                f"--include={PACKAGES}",
                RELEASE,
                str(partial),
                f"deb [signed-by={KEYRING}] {mirror} {RELEASE} main",
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        (partial / "opt" / "cloudtaser").mkdir()
        (partial / "usr/lib/python3/dist-packages/cloudtaser.pth").write_text("/opt/cloudtaser\n")
        partial.rename(root)
    return root


def command(root: Path, *words: str, checkout: Path = CHECKOUT) -> Sequence[str]:
    """Return what runs `words` inside the user space, with the checkout at /opt/cloudtaser."""
    return [
        "unshare",
        "--mount",
        "--propagation=private",
        "sh",
        "-c",
        ENTER,
        "sh",
        os.fspath(root),
        os.fspath(checkout),
        *words,
    ]
