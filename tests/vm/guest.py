"""Runs one command in a virtual machine that differs from this machine in its kernel alone.

The guest sees this machine's root file system, read-only, and one shared folder that it can write.
Everything else it writes (/tmp, /run, /var, /etc) lies in its own memory and goes away with it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm.kernels import CHECKOUT, Kernel

# A boot takes 5 seconds under software emulation on an idle machine and about 20 on a busy one.
BOOT_S = 120
# What a guest may take beyond the command's own timeout, to end the command and to say so.
ANSWER_S = 60
# What qemu may still take to go away once the command's exit code is known.
SHUTDOWN_S = 30
# How often a waiting caller looks whether it was told to stop, or whether the guest is done.
LOOK_S = 0.5
TAIL_LINES = 60

# Paths travel through a shell, qemu's option parser and the kernel's command line.
SAFE_PATH = re.compile(r"[\w+/.-]+")

# The console shows errors and what a dying kernel says. An oops ends the guest: a kernel that has lost
# a task while holding locks would only hang later, and no test result from it could be trusted.
# Before 6.0, 9p allocates half a megabyte for every request; without the zeroing of new memory, which
# Debian turns on, Python starts three times faster on 5.10.
KERNEL_OPTIONS = "loglevel=4 oops=panic init_on_alloc=0"
KERNEL_DIED = re.compile(r"Kernel panic - not syncing: .*")

# virtme has set up /proc, /sys, securityfs, cgroup2 and the loopback device already.
SCRIPT = """\
#!/bin/sh
# Written by tests/vm/guest.py for one boot.
: > {started}
exec < /dev/null > {log} 2>&1
export PATH={path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export TMPDIR=/run/guest
mkdir -m 1777 "$TMPDIR"
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
# virtme mounts 9p without a cache, which turns read-ahead off: then every page of a library that a
# program maps is a request of its own, and loading BCC takes twice as long.
for ahead in /sys/class/bdi/9p-*/read_ahead_kb; do echo 128 > "$ahead"; done
cd {cwd}
timeout --kill-after=10 {timeout_s} env {environment} {command}
echo $? > {exit_code}.partial
mv {exit_code}.partial {exit_code}
sync
"""


class GuestError(Exception):
    """The guest gave no exit code, so nothing is known about the command.

    GuestError
    ├── GuestNotStartedError   it never came up: the machine lacks something, or the kernel does not boot
    ├── GuestPanickedError     its kernel died; that is a finding, not a failed test
    ├── GuestHungError         it was up, but neither finished nor kept to the command's timeout
    └── GuestStoppedError      the caller asked for it
    """


class GuestNotStartedError(GuestError):
    """The guest never reached the command."""


class GuestPanickedError(GuestError):
    """The guest's kernel panicked, or went away while the command ran."""


class GuestHungError(GuestError):
    """The guest was up and stopped answering; the command's own timeout did not end it."""


class GuestStoppedError(GuestError):
    """The guest was ended from outside, by the caller's `stop`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestResult:
    """A command that ran to its end in a guest, well or not; 124 is `timeout`'s code for "too slow"."""

    exit_code: int
    log_text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Files:
    """What guest and host tell each other, in the shared folder."""

    share: Path

    @property
    def script(self) -> Path:
        return self.share / "guest.sh"

    @property
    def log(self) -> Path:
        return self.share / "guest.log"

    @property
    def console(self) -> Path:
        return self.share / "guest-console.log"

    @property
    def started(self) -> Path:
        return self.share / "guest-started"

    @property
    def exit_code(self) -> Path:
        return self.share / "guest-exit-code"


def run(
    kernel: Kernel,
    *,
    append: str,
    command: Sequence[str],
    share: Path,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    cwd: Path = CHECKOUT,
    memory: str = "1G",
    cpus: int = 2,
    qemu_options: Sequence[str] = (),
    stop: threading.Event | None = None,
) -> GuestResult:
    """Boot a kernel, run a command as root in it and return how the command ended.

    `share` belongs to this one boot, and is the only folder that the guest can write to for good. `stop`
    lets another thread end the wait. However this returns or raises, the guest is gone afterwards.
    """
    share.mkdir(parents=True, exist_ok=True)
    files = _Files(share.resolve())
    for path in (files.log, files.console, files.started, files.exit_code):
        path.unlink(missing_ok=True)
    files.script.write_text(
        SCRIPT.format(
            started=shlex.quote(str(files.started)),
            log=shlex.quote(str(files.log)),
            exit_code=shlex.quote(str(files.exit_code)),
            path=shlex.quote(str(Path(sys.executable).parent)),
            cwd=shlex.quote(str(cwd)),
            timeout_s=int(timeout_s),
            environment=shlex.join(f"{key}={value}" for key, value in _environment(environment).items()),
            command=shlex.join(command),
        ),
    )
    began = time.monotonic()
    with files.console.open("wb") as console:
        qemu = subprocess.Popen(
            [
                *_boot_command(kernel, files, append=append, memory=memory, cpus=cpus),
                *(f"--qemu-opts={option}" for option in qemu_options),
            ],
            cwd=files.share,
            env=_host_environment(files.share),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,  # Ctrl-C is for the caller, who then ends the guest in order
        )
        try:
            _wait(qemu, files, timeout_s, stop)
        finally:
            # Ends the guest with it; see _boot_command.
            qemu.kill()
            qemu.wait()
    return GuestResult(
        exit_code=int(files.exit_code.read_text()),
        log_text=_text(files.log),
        seconds=time.monotonic() - began,
    )


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    # The checkout is read-only there, so Python cannot write bytecode beside its sources.
    return {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", **(extra or {})}


def _host_environment(share: Path) -> dict[str, str]:
    # vng calls virtme-run by its name; and what virtme leaves behind when killed belongs to this boot.
    scratch = share / "virtme"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return {**os.environ, "PATH": path, "TMPDIR": str(scratch)}


def _boot_command(kernel: Kernel, files: _Files, *, append: str, memory: str, cpus: int) -> list[str]:
    vng = Path(sys.executable).parent / "vng"
    if not vng.exists():
        raise GuestNotStartedError(f"{vng} is missing: install the development tools (make setup)")
    for tool, package in {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static"}.items():
        if shutil.which(tool) is None:
            raise GuestNotStartedError(f"{tool} is missing: install the package {package}")
    for path in (files.share, kernel.image):
        if not SAFE_PATH.fullmatch(str(path)):
            raise GuestNotStartedError(f"{path}: a guest cannot be given paths with spaces or signs in them")
    return [
        # vng starts a shell, that starts virtme-run, and that qemu. In a pid namespace of their own they
        # all end with `unshare`, and `unshare` ends with us, even if we are killed ourselves.
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"),
        str(vng),
        f"--run={kernel.image}",
        # With KVM a guest needs nested virtualisation wherever this machine is itself a guest. Emulation
        # works everywhere, and is fast enough.
        *(() if os.environ.get("CLOUDTASER_VM_KVM") == "1" else ("--disable-kvm",)),
        # Debian's virtiofsd is not the one virtme expects; finding that out takes it 6 seconds a boot.
        "--force-9p",
        "--user=root",
        f"--rwdir={files.share}",
        f"--memory={memory}",
        f"--cpus={cpus}",
        "--verbose",  # the console goes to stderr instead of nowhere
        f"--append={append} {KERNEL_OPTIONS}",
        "--exec",
        f"sh {files.script}",
    ]


def _wait(
    qemu: "subprocess.Popen[bytes]",
    files: _Files,
    timeout_s: float,
    stop: threading.Event | None,
) -> None:
    """Return once the guest has left an exit code; raise what else became of it."""
    started = False
    deadline = time.monotonic() + BOOT_S
    while not files.exit_code.exists():
        if stop is not None and stop.is_set():
            raise GuestStoppedError("the guest was told to stop")
        if _ended(qemu, LOOK_S):
            if not files.exit_code.exists():
                raise _died(files)
            return
        if not started and files.started.exists():
            started = True
            deadline = time.monotonic() + timeout_s + ANSWER_S
        if time.monotonic() > deadline:
            raise _stuck(files)
    _ended(qemu, SHUTDOWN_S)


def _ended(qemu: "subprocess.Popen[bytes]", within_s: float) -> bool:
    try:
        qemu.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _died(files: _Files) -> GuestError:
    panic = KERNEL_DIED.search(_text(files.console))
    if panic is not None:
        return GuestPanickedError(_told(panic.group().strip(), files))
    if files.started.exists():
        return GuestPanickedError(_told("the guest went away while the command ran", files))
    return GuestNotStartedError(_told("the guest did not start", files))


def _stuck(files: _Files) -> GuestError:
    if files.started.exists():
        return GuestHungError(_told("the guest hangs: it outlived the command's timeout", files))
    return GuestNotStartedError(_told("the guest did not come up in time", files))


def _told(what: str, files: _Files) -> str:
    return f"{what}\n--- console\n{tail(_text(files.console))}\n--- log\n{tail(_text(files.log))}"


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.splitlines()[-lines:])


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
