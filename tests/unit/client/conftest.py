"""A clock that tests move, and answers to requests that are never sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from aiohttp import ClientResponse
from aioresponses import aioresponses

from tests.support.clocks import SenderClock


class Response(ClientResponse):
    """aioresponses builds responses as aiohttp did before 3.14: without this argument."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **{"stream_writer": mock.Mock(), **named})


@pytest.fixture
def clock() -> SenderClock:
    """A clock at some moment."""
    return SenderClock()


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    """Answers for requests; one that none is left for fails with a connection error."""
    monkeypatch.setattr("aioresponses.core.ClientResponse", Response)
    with aioresponses() as answers:
        yield answers
