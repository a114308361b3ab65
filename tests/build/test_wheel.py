"""What is installed from a wheel finds its BPF sources."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SOURCES = {path.name for path in (CHECKOUT / "bpf_programs").glob("*.[ch]")} | {"LICENSE"}

# The way in which the agent finds them, too.
FIND = (
    "from pathlib import Path; import agent; print(*Path(agent.__file__).with_name('bpf_programs').iterdir())"
)


def found_from(folder):
    output = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {FIND}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [Path(word) for word in output.split()]
    assert all(path.is_relative_to(folder) for path in paths)
    return {path.name for path in paths}


def test_a_checkout_has_the_sources():
    assert found_from(CHECKOUT) == SOURCES


def test_a_wheel_has_the_sources(tmp_path):
    source = tmp_path / "source"  # setuptools writes beside what it builds
    source.mkdir()
    for name in ("agent", "bpf_programs"):
        shutil.copytree(CHECKOUT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(CHECKOUT / name, source / name)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
            *("--no-index", "--wheel-dir", tmp_path, source),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")

    assert found_from(tmp_path / "installed") == SOURCES
