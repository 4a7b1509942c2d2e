"""A server and an agent as units below a scratch root, run from this very environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.installed_server import InstalledServer, server
from tests.support.supervised_unit import Unit


@pytest.fixture(scope="session")
def server_unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    """A server that runs, for all tests that leave it alone."""
    root = tmp_path_factory.mktemp("server")
    with server(root) as unit:
        assert unit.start(), unit.tail()
        yield unit


@pytest.fixture
def installed(server_unit: Unit) -> InstalledServer:
    """The server that runs, and its root."""
    url = server_unit.until(lambda: server_unit.told("STATUS=serving on "))  # it comes after READY
    return InstalledServer(server_unit.root, url[0].removeprefix("STATUS=serving on "))
