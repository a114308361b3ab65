"""The kernel tests hold on every kernel, boot and layer of the table."""

import pytest

from tests.vm.boots import BOOTS

pytestmark = pytest.mark.timeout(0)  # a guest ends by its own clock, which starts when its turn comes


@pytest.mark.parametrize("boot", BOOTS, ids=lambda boot: boot.name)
def test_kernel_tests_pass_in_the_guest(boot, boots):
    report = boots.report(boot)
    if not report.passed:
        pytest.fail(str(report), pytrace=False)
