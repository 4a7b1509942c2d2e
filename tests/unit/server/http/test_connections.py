"""A connection that was accepted as the server stopped is closed."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from arc_server.http.connections import ClientConnection, Connections
from arc_server.http.limits import HttpLimits
from arc_server.http.proxies import TrustedProxies


async def test_a_connection_that_is_made_while_the_server_stops_is_closed() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    loop = asyncio.get_running_loop()
    connections = Connections()
    connections.is_closing = True
    connection = ClientConnection(
        web.Server(handler), connections, HttpLimits(), TrustedProxies([]), loop=loop
    )
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        await loop.create_connection(lambda: connection, sock=ours)

        async with asyncio.timeout(10):
            assert await loop.sock_recv(theirs, 1) == b""
    assert await connections.wait_closed(10)
