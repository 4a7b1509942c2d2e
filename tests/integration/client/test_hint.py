"""Why nobody takes a command: told to who waits for it, if it can be known."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from arc_client import Client, invocation
from arc_client.params import Body
from arc_client.progress import Journey

from .fake_server import FakeServer, agent, echo


class Noting(Journey):
    """Keeps what it is told to note."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)


async def invoke(server: FakeServer, until: Any) -> list[str]:
    """Invoke what has no handler, let one appear once `until` is so; what was noted meanwhile."""
    journey = Noting()
    params = Body(b"7", size=1)
    whom = invocation.Addressee("dep", "late", None)
    async with Client(server.url, watch=journey) as client:
        waiting = asyncio.ensure_future(
            invocation.invoke(client, journey, whom, params, {}, timeout=30, out=None)
        )
        await server.until(until)
        while not journey.notes and not server.faults.get("agents") and server.knows_part_2:
            await asyncio.sleep(0)
        server.handlers["late"] = echo
        server.run("cmd_1")
        await waiting
    return journey.notes


async def test_who_waits_for_nobody_is_told_so(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(invocation, "HINT_SECONDS", 0.05)
    server.agents = [agent("a1", "other")]

    notes = await invoke(server, lambda: server.count("GET", "/v1/agents") > 0)

    expected = ["still waiting: no agent of dep has been seen yet"] if server.knows_part_2 else []
    assert notes == expected
    assert capfd.readouterr().out == "7\n"
