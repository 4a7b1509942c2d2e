"""A server that is handed its listening socket, as systemd does, is restarted under load."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from arc_client import Client
from tests.support.waiting import until
from tests.support.world import DEPLOYMENT, World

SENDERS = 4
VISITORS = 2
"""Clients that use each connection once, and try nothing again."""
ROUND = 8
"""Results before, between and after the restarts."""


class Load:
    """Senders and visitors, until the test has seen enough."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.results: list[tuple[int, int]] = []
        """What was sent, and what came back."""
        self.visits = 0
        self._is_over = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Everything that fails ends the block with its error."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(SENDERS):
                tasks.create_task(self._send(number))
            for _ in range(VISITORS):
                tasks.create_task(self._visit())
            yield self
            self._is_over = True

    async def _send(self, sender: int) -> None:
        token = self._world.tokens["admin"]
        async with Client(self._world.url, token_file=token, environ={}) as arc:
            number = sender
            while not self._is_over:
                result = await arc.invoke(DEPLOYMENT, "count", {"n": number})
                self.results.append((number, result["n"]))
                number += SENDERS

    async def _visit(self) -> None:
        while not self._is_over:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._world.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200"), answer
            self.visits += 1


@pytest.mark.parametrize("restarts", [1, pytest.param(12, marks=pytest.mark.chaos)])
async def test_a_restart_under_load_refuses_no_connection_and_loses_no_command(
    world: World, restarts: int
) -> None:
    with socket.create_server(("127.0.0.1", world.port), backlog=4096) as listener:
        server = await world.server(listener=listener)
        await world.agent("one")

        async with Load(world).running() as load:
            for number in range(1, restarts + 1):
                await until(lambda: len(load.results) >= ROUND * number)  # noqa: B023
                server.terminate()
                assert await server.ended() == 0
                visits = load.visits
                server = await world.server(listener=listener)
                await until(lambda: load.visits > visits)  # noqa: B023
            await until(lambda: len(load.results) >= ROUND * (restarts + 1))

    assert [came for _, came in load.results] == [sent for sent, _ in load.results]
    assert len(world.runs()) == len(load.results), "each command ran once"
    assert server.events("server.sockets_inherited") != []
