"""An API server for the tests that talk to one."""

from collections.abc import Iterator

import pytest

from tests.api_server import ApiServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """The tests' own API server, reached directly; nothing that it was asked was beyond it."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with ApiServer() as running:
        yield running
        assert running.errors == []
