"""Attacks on a server, each of them one client that does what it can until it is killed.

`benchmarks/overload.py` starts this file as a process of its own beside an honest load:

    python benchmarks/attacks.py NAME URL SENDER_TOKEN_FILE AGENT_TOKEN_FILE
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import sys
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

DEPLOYMENT: Final = "attacker"
"""The deployment that the attacker's tokens are good for."""
CONNECTIONS: Final = 10_500
"""More than a server takes."""
CREATES: Final = 64
"""Connections that create commands as fast as they can."""
_numbers = itertools.count(1)


class Attacker:
    """The attacker's means: an address to connect to, and tokens."""

    def __init__(self, url: str, sender_token: str, agent_token: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.sender_token = sender_token
        self.agent_token = agent_token

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection."""
        return await asyncio.open_connection(self.host, self.port, limit=1 << 26)

    def head(self, line: str, length: int, token: str = "", more: str = "") -> bytes:
        """Return a request up to its body."""
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        return (
            f"{line} HTTP/1.1\r\nHost: a\r\n{authorization}{more}Content-Length: {length}\r\n\r\n"
        ).encode()

    async def ask(
        self,
        at: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        line: str,
        body: bytes = b"",
        token: str = "",
    ) -> bytes:
        """Send a request, and return the body of its answer."""
        reader, writer = at
        writer.write(self.head(line, len(body), token) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        return await reader.readexactly(int(length.split(b"\r\n")[0] or 0))

    async def keep_asking(
        self, requests: Callable[[], tuple[str, bytes, str]], *, pause: float = 0
    ) -> None:
        """Send one request after the other, on a new connection when the last one is closed."""
        while True:
            try:
                at = await self.connect()
                while True:
                    line, body, token = requests()
                    await self.ask(at, line, body, token)
                    await asyncio.sleep(pause)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                await asyncio.sleep(0.05)

    async def hold(self, count: int, first: bytes) -> None:
        """Hold so many connections open that have sent this; open others for those that end."""

        async def one(number: int) -> None:
            await asyncio.sleep(number / 2_000)
            while True:
                try:
                    reader, writer = await self.connect()
                    writer.write(first)
                    await writer.drain()
                    while await reader.read(1 << 16):
                        pass
                    writer.close()
                except OSError:
                    pass
                await asyncio.sleep(1)

        await asyncio.gather(*map(one, range(count)))


def _create(**fields: object) -> bytes:
    params = {"mode": "inline", "inlineBase64": b64encode(b"x" * 300).decode()}
    request = {"deploymentId": DEPLOYMENT, "command": "report", "params": params} | fields
    return json.dumps(request).encode()


def _lease(**fields: object) -> bytes:
    return json.dumps({"deploymentId": DEPLOYMENT} | fields).encode()


def _registration(handlers: bytes) -> bytes:
    head = json.dumps({"deploymentId": DEPLOYMENT, "version": "1", "hostname": "h"}).encode()
    return head[:-1] + b', "handlers": ' + handlers + b"}"


async def creates(by: Attacker) -> None:
    """Create commands that no agent takes, as fast as it goes."""
    body = _create()
    await asyncio.gather(
        *(
            by.keep_asking(lambda: ("POST /v1/commands", body, by.sender_token))
            for _ in range(CREATES)
        )
    )


async def backlog(by: Attacker) -> None:
    """Make a backlog, and lease a thousand commands at a time of it for a moment each."""
    body, lease = _create(), _lease(maxLeases=1000, leaseSeconds=1)

    async def agent() -> None:
        await by.keep_asking(lambda: ("POST /v1/commands/leases", lease, by.agent_token))

    await asyncio.gather(
        *(
            by.keep_asking(lambda: ("POST /v1/commands", body, by.sender_token))
            for _ in range(CREATES)
        ),
        *(agent() for _ in range(8)),
    )


async def stalled_bodies(by: Attacker) -> None:
    """Announce 31 MiB to every kind of route, send most of it at once, and then nothing."""
    lines = {
        "POST /v1/commands/leases": by.agent_token,
        "PUT /v1/agents/a": by.agent_token,
        "POST /v1/commands": by.sender_token,
    }
    heads = [by.head(line, 31 << 20, token) for line, token in lines.items()]
    await asyncio.gather(*(by.hold(10, head + b" " * (30 << 20)) for head in heads))


async def registrations(by: Attacker) -> None:
    """Register agents with long descriptions, and list them."""
    handlers = json.dumps([{"name": f"h{n}", "description": "x" * 3900} for n in range(500)])
    body = _registration(handlers.encode())

    def put() -> tuple[str, bytes, str]:
        return f"PUT /v1/agents/a{next(_numbers)}", body, by.agent_token

    await asyncio.gather(
        *(by.keep_asking(put) for _ in range(4)),
        by.keep_asking(lambda: ("GET /v1/agents?schemas=true", b"", by.sender_token)),
    )


async def nested(by: Attacker) -> None:
    """Send what takes long to decode."""
    lists = b"[" + b",".join([b"[]"] * 690_000) + b"]"
    body = _registration(b'[{"name": "a", "paramsSchema": {"x": %s}}]' % lists)
    contract = _create()[:-1] + b', "operationResultContract": %s}' % (
        b"[" + b",".join([lists] * 14) + b"]"
    )
    await asyncio.gather(
        by.keep_asking(lambda: ("PUT /v1/agents/a", body, by.agent_token)),
        by.keep_asking(lambda: ("POST /v1/commands", contract, by.sender_token)),
    )


async def idle_connections(by: Attacker) -> None:
    """Hold as many connections without a token as there are descriptors."""
    await by.hold(CONNECTIONS, b"")


async def stalled_strangers(by: Attacker) -> None:
    """Keep the server waiting for bodies of routes that ask for no token."""
    expect = "Expect: 100-continue\r\n"
    await by.hold(CONNECTIONS, by.head("POST /v1/agents/tokens", 500, more=expect))


async def uploads(by: Attacker) -> None:
    """Announce uploads that never come."""
    body = _create(params={"mode": "storage", "size": 5 << 30})
    await asyncio.gather(
        *(by.keep_asking(lambda: ("POST /v1/commands", body, by.sender_token)) for _ in range(16))
    )


async def new_targets(by: Attacker) -> None:
    """Name another target with each lease request and each create."""

    def lease() -> tuple[str, bytes, str]:
        target = {"resourceId": f"t{next(_numbers)}", "resourceType": "daemon"}
        return "POST /v1/commands/leases", _lease(target=target), by.agent_token

    def create() -> tuple[str, bytes, str]:
        body = _create(targetResourceId=f"t{next(_numbers)}")
        return "POST /v1/commands", body, by.sender_token

    await asyncio.gather(*(by.keep_asking(each) for each in (lease, create) for _ in range(16)))


async def large_leases(by: Attacker) -> None:
    """Lease a thousand commands of 149 kB at a time, for a second."""
    params = {"mode": "inline", "inlineBase64": b64encode(b"x" * 149_000).decode()}
    at, body = await by.connect(), _create(params=params)
    for _ in range(600):
        await by.ask(at, "POST /v1/commands", body, by.sender_token)
    lease = _lease(maxLeases=1000, leaseSeconds=1)
    await asyncio.gather(
        *(
            by.keep_asking(lambda: ("POST /v1/commands/leases", lease, by.agent_token))
            for _ in range(4)
        )
    )


async def junk_tokens(by: Attacker) -> None:
    """Try to enrol, and to be let in, without a good token."""
    await asyncio.gather(
        *(
            by.keep_asking(lambda: ("POST /v1/agents/enrol", b"{}", "arc_enrol_" + "x" * 43))
            for _ in range(8)
        ),
        *(by.keep_asking(lambda: ("GET /v1/commands", b"", "arc_junk")) for _ in range(8)),
    )


async def long_headers(by: Attacker) -> None:
    """Send headers as long as they may be behind a long poll, on many connections."""
    padding = "".join(f"X-{number}: {'x' * 8_000}\r\n" for number in range(7))
    request = by.head("GET /v1/commands", 0, more=padding)
    poll = _lease(waitSeconds=60)
    first = by.head("POST /v1/commands/leases", len(poll), by.agent_token) + poll + request * 64
    await by.hold(200, first)


ATTACKS: Final[dict[str, Callable[[Attacker], Awaitable[None]]]] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        *(creates, backlog, stalled_bodies, registrations, nested, idle_connections),
        *(stalled_strangers, uploads, new_targets, large_leases, junk_tokens, long_headers),
    )
}
"""By name."""


def main() -> None:
    """Attack until killed."""
    name, url, sender_file, agent_file = sys.argv[1:]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    tokens = (Path(file).read_text().strip() for file in (sender_file, agent_file))

    async def attack() -> None:
        await ATTACKS[name](Attacker(url, *tokens))

    asyncio.run(attack())


if __name__ == "__main__":
    main()
