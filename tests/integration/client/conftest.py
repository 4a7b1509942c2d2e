"""A fake server for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.fake_server import FakeServer, echo, fail


@pytest.fixture(params=[True, False], ids=["extended", "base"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[FakeServer]:
    """A server with an `echo` and a `fail` handler, of both kinds in turn."""
    fake = FakeServer(knows_extensions=request.param, handlers={"echo": echo, "fail": fail})
    await fake.start()
    yield fake
    await fake.stop()
