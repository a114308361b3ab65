"""tests/conftest.py itself, on small trees of tests in pytests of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

SKIPS = """
import pytest

@pytest.mark.skip(reason="no such kernel")
def test_that_skips(): ...

@pytest.mark.xfail(reason="a known hole", strict=True)
def test_of_a_known_hole():
    assert False
"""
SKIPS_WHOLE = """
import pytest

pytest.skip("no such library", allow_module_level=True)
"""


@pytest.fixture
def run(tmp_path):
    def run(tier, source, *arguments, **environment):
        folder = tmp_path / "tests" / tier
        folder.mkdir(parents=True)
        (folder.parent / "conftest.py").write_text(CONFTEST.read_text())
        (folder / "test_it.py").write_text(source)
        markers = ["-o", "markers=unit\nbuild\nkernel\nvm", "-p", "no:cacheprovider", "--strict-markers"]
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-rA", "--rootdir", tmp_path, *markers, *arguments, folder],
            env={"PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("tier", ["kernel", "vm"])
def test_a_skip_is_a_failure_where_the_tier_is_required(run, tier):
    done = run(tier, SKIPS, CLOUDTASER_KERNEL_TESTS="require")

    assert done.returncode == 1
    assert "allows no skip, and this is one. Skipped: no such kernel" in done.stdout
    assert "1 xfailed, 1 error" in done.stdout


def test_a_skip_of_a_module_is_a_failure_where_the_tier_is_required(run):
    done = run("kernel", SKIPS_WHOLE, CLOUDTASER_KERNEL_TESTS="require")

    assert done.returncode == 2
    assert "allows no skip, and this is one. Skipped: no such library" in done.stdout


@pytest.mark.parametrize(("tier", "required"), [("kernel", ""), ("unit", "require")])
def test_a_skip_is_a_skip_elsewhere(run, tier, required):
    done = run(tier, SKIPS, CLOUDTASER_KERNEL_TESTS=required)

    assert done.returncode == 0
    assert "1 skipped, 1 xfailed" in done.stdout


@pytest.mark.parametrize(("tier", "marker", "code"), [("vm", "vm", 0), ("vm", "kernel", 5)])
def test_a_test_is_marked_by_its_folder(run, tier, marker, code):
    assert run(tier, "def test_it(): ...", "-m", marker).returncode == code
