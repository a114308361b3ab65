"""The agent works with Debian 13's Python, BCC and compiler as it does with Debian 12's."""

import subprocess

import pytest

from tests.vm import guest, guest_tests, kernels, userland
from tests.vm.boots import ADVISED

pytestmark = pytest.mark.timeout(900)

SELFTEST = ("python3", "-m", "agent", "selftest", "--mode", "strict")
VERSIONS = ("python3", "-c", "import bcc, sys; print(bcc.__version__, *sys.version_info[:2])")


@pytest.fixture(scope="module")
def root():
    return userland.ensure(kernels.mirror())


def test_it_is_debian_13s_bcc(root):
    done = subprocess.run(userland.command(root, *VERSIONS), capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["0.31.0", "3", "13"]


def test_the_tracepoint_layer_holds_on_this_kernel(root):
    done = subprocess.run(
        userland.command(root, *SELFTEST, "--layer", "tracepoint"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (done.returncode, done.stdout.count("held")) == (0, 9), done.stdout + done.stderr


def test_the_lsm_layer_holds_in_a_guest(root):
    done = guest.run(
        kernels.ensure("trixie"),
        append=ADVISED,
        command=userland.command(root, *SELFTEST, "--layer", "lsm"),
        share=guest_tests.work_folder() / "debian13",
        timeout_s=300,
    )

    assert (done.exit_code, done.log_text.count("held")) == (0, 9), done.log_text
