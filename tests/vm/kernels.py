"""Debian's kernels, fetched by release into a cache and unpacked as far as a guest needs.

    python -m tests.vm.kernels [--refresh] [RELEASE ...]

Nothing is installed and the machine's own package sources stay as they are: apt is given lists and a
cache of its own for every release. A kernel, once unpacked, is used until `--refresh` asks again.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CHECKOUT = Path(__file__).resolve().parents[2]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Most of a Debian kernel is drivers for hardware which no guest has. These stay: what virtme loads to
# reach its root file system, and the network devices that a test of egress may want.
DRIVERS = re.compile(
    r"drivers/(virtio/|input/serio/|input/keyboard/atkbd|char/virtio_console|block/(loop|virtio_blk)"
    r"|net/(dummy|veth|tun|tap|virtio_net|net_failover)\.|net/vxlan/|watchdog/i6300esb)",
)
WITHOUT_DRIVERS = re.compile(r"(arch|block|crypto|fs|lib|mm|net|security|virt)/")


class KernelError(Exception):
    """A kernel cannot be provided; the message says what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """An unpacked kernel: `image` boots, and `modules` is the folder above `lib/modules`."""

    release: str
    version: str
    image: Path
    modules: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One Debian release and the suites that carry its kernel, each as (path on the mirror, suite)."""

    name: str
    suites: tuple[tuple[str, str], ...]


def _stable(name: str) -> Release:
    # With the security suite, since that is the kernel which a node of this release runs.
    return Release(name=name, suites=(("debian", name), ("debian-security", f"{name}-security")))


RELEASES = {
    release.name: release
    for release in (
        _stable("bullseye"),
        _stable("bookworm"),
        _stable("trixie"),
        Release(name="sid", suites=(("debian", "sid"),)),
    )
}


def cache_folder() -> Path:
    """Return where kernels are kept: CLOUDTASER_KERNEL_CACHE, or .cache/kernels in the checkout."""
    return Path(os.environ.get("CLOUDTASER_KERNEL_CACHE") or CHECKOUT / ".cache" / "kernels").resolve()


def ensure(release: str, *, cache: Path | None = None, refresh: bool = False) -> Kernel:
    """Return the kernel of a Debian release, fetching and unpacking it first if it is not there yet."""
    if release not in RELEASES:
        raise KernelError(f"there is no release {release!r}; choose one of {', '.join(RELEASES)}")
    folder = (cache or cache_folder()) / release
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        known = _recorded(folder, release)
        if known is not None and not refresh:
            return known
        apt = Apt(folder / "apt", RELEASES[release])
        apt.update()
        version = apt.kernel_version()
        if known is not None and known.version == version:
            apt.clean()
            return known
        kernel = _unpacked(folder, release, version, apt.download(version))
        _record(folder, kernel)
        apt.clean()
        if known is not None:
            shutil.rmtree(known.modules)
        return kernel


# The record, written last: a folder without one was left half done and is done again.


def _record(folder: Path, kernel: Kernel) -> None:
    partial = folder / "kernel.json.partial"
    partial.write_text(json.dumps({"version": kernel.version}) + "\n")
    partial.replace(folder / "kernel.json")


def _recorded(folder: Path, release: str) -> Kernel | None:
    try:
        version = json.loads((folder / "kernel.json").read_text())["version"]
    except FileNotFoundError:
        return None
    kernel = _kernel(folder, release, version)
    return kernel if kernel.image.exists() else None


def _kernel(folder: Path, release: str, version: str) -> Kernel:
    # virtme finds modules in lib/modules of the nearest folder above the image, so that nothing
    # needs to be written into the machine's own /lib/modules.
    root = folder / version
    return Kernel(release=release, version=version, image=root / "boot" / f"vmlinuz-{version}", modules=root)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"{path.parent.name}: waiting for another process that fetches this kernel")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mirror() -> str:
    """Return the Debian mirror that this machine's own apt uses; it carries the other releases too."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [site for site in done.stdout.split() if site.endswith("/debian")]
    if not found:
        raise KernelError("apt knows no mirror of Debian's archive: run apt-get update with one configured")
    return found[0]


# apt, with everything it reads and writes in a folder of ours.


class Apt:
    """The packages of one Debian release, whatever release this machine is; `folder` is for apt's own use."""

    def __init__(self, folder: Path, release: Release) -> None:
        self._folder = folder
        self._release = release
        self._archive = archive = mirror().removesuffix("/debian")
        for name in ("lists/partial", "cache/archives/partial", "debs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        sources = [
            f"deb [arch=amd64 signed-by={KEYRING}] {archive}/{path} {suite} main\n"
            for path, suite in release.suites
        ]
        (folder / "sources.list").write_text("".join(sources))
        # No installed package, pin or default release of this machine may take part in the choice.
        (folder / "status").touch()
        self._options = [
            f"-o{key}={value}"
            for key, value in {
                "Dir::Etc::sourcelist": folder / "sources.list",
                "Dir::Etc::sourceparts": "-",
                "Dir::Etc::preferences": "-",
                "Dir::Etc::preferencesparts": "-",
                "Dir::State": folder,
                "Dir::State::lists": folder / "lists",
                "Dir::State::status": folder / "status",
                "Dir::Cache": folder / "cache",
                "Acquire::Languages": "none",
                "APT::Default-Release": "",
                "APT::Sandbox::User": "",  # the cache may lie where the user _apt cannot go
                "APT::Update::Error-Mode": "any",  # an old list must not pass for a new one
            }.items()
        ]

    def update(self) -> None:
        """Learn what there is now."""
        _say(f"{self._release.name}: asking {self._archive} for its packages")
        try:
            self._run("apt-get", "update", "-q")
        except KernelError as err:
            if "does not have a Release file" in str(err) or "404" in str(err):
                raise KernelError(
                    f"Debian's {self._release.name} has left {self._archive} (old releases move to "
                    f"archive.debian.org); drop it from tests/vm/kernels.py and tests/vm/boots.py\n{err}",
                ) from err
            raise

    def kernel_version(self) -> str:
        """Return what the package for "the current kernel" stands for, as `uname -r` will say it."""
        found = {
            name.removeprefix("linux-image-")
            for name in self._depends("linux-image-amd64")
            if re.match(r"linux-image-\d", name)
        }
        if len(found) != 1:
            raise KernelError(
                f"linux-image-amd64 of {self._release.name} should depend on exactly one kernel, "
                f"but depends on {sorted(found) or 'none'}; tests/vm/kernels.py must learn its new form",
            )
        return found.pop()

    def download(self, version: str) -> list[Path]:
        """Fetch the packages that carry a kernel: its image, or the parts which an image was split into."""
        image = f"linux-image-{version}"
        packages = [image, *(name for name in self._depends(image) if name.endswith(f"-{version}"))]
        return self.fetch(*packages)

    def fetch(self, *packages: str) -> list[Path]:
        """Fetch packages, without those that they depend on."""
        _say(f"{self._release.name}: downloading {packages[0]}")
        debs = self._folder / "debs"
        self._run("apt-get", "download", "-q", *packages, cwd=debs)
        return [next(debs.glob(f"{package}_*.deb")) for package in packages]

    def clean(self) -> None:
        """Remove what was needed to find and fetch; the kernel itself lies elsewhere."""
        shutil.rmtree(self._folder)

    def _depends(self, package: str) -> list[str]:
        out = self._run("apt-cache", "depends", "--important", package)
        return re.findall(r"^  Depends: (\S+)$", out, re.MULTILINE)

    def _run(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        command = [tool, *self._options, *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError as err:
            raise KernelError(f"{tool} is missing: fetching kernels needs a Debian machine") from err
        if done.returncode != 0:
            raise KernelError(f"{tool} {arguments[0]}, {self._release.name}: failed\n{done.stderr.strip()}")
        return done.stdout


# Unpacking.


def _unpacked(folder: Path, release: str, version: str, debs: Sequence[Path]) -> Kernel:
    _say(f"{release}: unpacking {version}")
    kernel = _kernel(folder, release, version)
    shutil.rmtree(kernel.modules, ignore_errors=True)
    for deb in debs:
        _extract(deb, kernel)
    if not kernel.image.exists():
        raise KernelError(f"no kernel image in {', '.join(deb.name for deb in debs)}")
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if depmod is None:
        raise KernelError("depmod is missing: install the package kmod")
    # Parts that list what is built in are in packages not worth fetching; depmod warns of that.
    subprocess.run([depmod, "-b", kernel.modules, version], stderr=subprocess.DEVNULL, check=True)
    return kernel


def _extract(deb: Path, kernel: Kernel) -> None:
    # Read as a stream, so that the nine tenths nobody needs never reach the disk.
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as unpack:
        with tarfile.open(fileobj=unpack.stdout, mode="r|") as members:
            for member in members:
                target = _target(member.name, kernel)
                content = members.extractfile(member) if target and member.isfile() else None
                if target is None or content is None:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    shutil.copyfileobj(content, out)
        # The stream ends before the padding does; reading on lets dpkg-deb finish without a complaint.
        if unpack.stdout is not None:
            unpack.stdout.read()
    if unpack.returncode != 0:
        raise KernelError(f"{deb} is damaged; remove it and run again")


def _target(name: str, kernel: Kernel) -> Path | None:
    """Return where a package's file goes, or nothing for a file that no guest needs."""
    path = PurePosixPath(name).as_posix().removeprefix("/").removeprefix("usr/")
    modules = f"lib/modules/{kernel.version}/"
    if path in {f"boot/vmlinuz-{kernel.version}", f"{modules}vmlinuz"}:
        return kernel.image
    if not path.startswith(modules):
        return None
    inside = path.removeprefix(modules)
    if not inside.startswith("kernel/"):
        return kernel.modules / path if inside.startswith("modules.") else None
    inside = inside.removeprefix("kernel/")
    wanted = DRIVERS.match(inside) or WITHOUT_DRIVERS.match(inside)
    return kernel.modules / path if wanted else None


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main() -> int:
    """Fetch the kernels asked for, all by default, and print where each one is."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.kernels", description=main.__doc__)
    parser.add_argument("release", nargs="*", help=f"some of: {', '.join(RELEASES)} (default: all)")
    parser.add_argument("--refresh", action="store_true", help="ask for newer kernels than the cache has")
    arguments = parser.parse_args()
    try:
        kernels = [ensure(name, refresh=arguments.refresh) for name in arguments.release or RELEASES]
    except KernelError as err:
        _say(f"error: {err}")
        return 1
    for kernel in kernels:
        print(f"{kernel.release:10} {kernel.version:26} {kernel.image}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
