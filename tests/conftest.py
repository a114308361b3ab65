"""The four tiers of tests, and the rule that a required tier skips nothing."""

import os
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
_TIERS = ("unit", "build", "kernel", "vm")
_NEED_A_KERNEL = {"kernel", "vm"}


def _tier(path: Path) -> str | None:
    name = path.relative_to(_TESTS).parts[0] if path.is_relative_to(_TESTS) else None
    return name if name in _TIERS else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the tier that its folder names."""
    for item in items:
        if tier := _tier(item.path):
            item.add_marker(tier)


# Under CLOUDTASER_KERNEL_TESTS=require a test that skips is a test that failed to run: this is how CI
# knows that nothing was left out in silence.
def _refuse_skip(report: pytest.TestReport | pytest.CollectReport, path: Path) -> None:
    required = os.environ.get("CLOUDTASER_KERNEL_TESTS") == "require"
    expected_to_fail = hasattr(report, "wasxfail")
    if required and report.skipped and not expected_to_fail and _tier(path) in _NEED_A_KERNEL:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"CLOUDTASER_KERNEL_TESTS=require allows no skip, and this is one. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Refuse a skip by a test or its fixtures."""
    report = yield
    _refuse_skip(report, item.path)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """Refuse a skip of a whole module."""
    report = yield
    if isinstance(collector, pytest.Module):
        _refuse_skip(report, collector.path)
    return report
