"""A small DNS server over real UDP, whose answers a test can change from one query to the next."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

A: Final = 1
CNAME: Final = 5
AAAA: Final = 28
_NO_SUCH_NAME: Final = 3


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """Answers with the next of `answers`, and with the last one for ever.

    An answer is a list of addresses; a name in it is a CNAME that what follows stands for.
    """

    answers: list[Sequence[str]]
    asked: int = 0
    """Look-ups so far; one asks for A and for AAAA."""
    port: int = 0
    _transport: asyncio.DatagramTransport | None = None
    _turns: dict[int, int] = field(default_factory=dict)

    async def start(self) -> NameServer:
        """Serve on a free port of 127.0.0.1."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self.port = self._transport.get_extra_info("sockname")[1]
        return self

    def stop(self) -> None:
        """Serve no more."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: Any) -> None:
        """Part of the protocol."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer one query, with a TTL of 0."""
        number, kind = struct.unpack("!H", data[:2])[0], struct.unpack("!H", data[-4:-2])[0]
        turn = self._turns.get(kind, 0)
        self._turns[kind] = turn + 1
        self.asked = max(self._turns.values())
        answer = self.answers[min(turn, len(self.answers) - 1)]
        records = [record for text in answer if (record := _record(text, kind))]
        code = 0 if answer else _NO_SUCH_NAME
        head = struct.pack("!HHHHHH", number, 0x8180 | code, 1, len(records), 0, 0)
        if self._transport is not None:
            self._transport.sendto(head + data[12:] + b"".join(records), addr)


def _record(text: str, kind: int) -> bytes | None:
    """A record for the name that was asked for, if it is of the kind."""
    try:
        address = ip_address(text)
    except ValueError:
        data = _name(text)
        return b"\xc0\x0c" + struct.pack("!HHIH", CNAME, 1, 0, len(data)) + data
    if kind != (A if address.version == 4 else AAAA):
        return None
    data = address.packed
    return b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 0, len(data)) + data


def _name(text: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in text.split(".")) + b"\0"


def look_up(server_port: int, host: str, port: int) -> list[Any]:
    """Resolve as `socket.getaddrinfo` does: both kinds, in the order of answers.

    Raises socket.gaierror for a name without addresses.
    """
    found: list[Any] = []
    for kind in (A, AAAA):
        query = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + _name(host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5)
            asking.sendto(query + struct.pack("!HH", kind, 1), ("127.0.0.1", server_port))
            found += [_info(address, port) for address in _addresses(asking.recv(4096))]
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return found


def _addresses(data: bytes) -> list[IPv4Address | IPv6Address]:
    """Return the addresses of an answer; a CNAME may lead to them."""
    place = data.index(b"\0", 12) + 5
    found: list[IPv4Address | IPv6Address] = []
    for _ in range(struct.unpack("!H", data[6:8])[0]):
        kind, _, _, length = struct.unpack("!HHIH", data[place + 2 : place + 12])
        content = data[place + 12 : place + 12 + length]
        if kind in (A, AAAA):
            found.append(ip_address(content))
        place += 12 + length
    return found


def _info(address: IPv4Address | IPv6Address, port: int) -> Any:
    """An entry as `getaddrinfo` gives it."""
    if isinstance(address, IPv4Address):
        return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (str(address), port))
    return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (str(address), port, 0, 0))
