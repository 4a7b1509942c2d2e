"""Trusted proxies: what they say of a request's client, scheme and host counts.

Only `X-Forwarded-For`, `-Proto` and `-Host` are read. `Forwarded` (RFC 7239) never is: nginx and
Caddy pass on the one that a client wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, TypeAlias, cast

IPAddress: TypeAlias = IPv4Address | IPv6Address

UNIX: Final = "unix"
"""Stands among the networks for every client of a Unix socket."""
_CLIENT_BITS: Final = 64
"""One customer of a provider has a /64 of IPv6 addresses or more."""


class TrustedProxies:
    """The networks whose hosts are proxies of this server."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Take networks such as `10.0.0.0/8`, addresses, and `unix`.

        Raises ValueError naming the entry that is none of these.
        """
        self._networks: list[IPv4Network | IPv6Network] = []
        self._trusts_unix = False
        for entry in entries:
            if entry == UNIX:
                self._trusts_unix = True
                continue
            try:
                self._networks.append(ip_network(entry))
            except ValueError as error:
                raise ValueError(f"{error}; expected 10.0.0.0/8, an address, or unix") from None

    def trust(self, peer: IPAddress | None) -> bool:
        """Return True if the peer of a connection is a proxy; None stands for a Unix socket."""
        if peer is None:
            return self._trusts_unix
        return any(peer in network for network in self._networks)

    def client(self, peer: IPAddress | None, forwarded_for: Sequence[str]) -> IPAddress | None:
        """Return the address of the client behind a trusted peer, by its `X-Forwarded-For`.

        Each proxy appends the address that it was called from. So the last address that is not of a
        proxy is the client's, and what stands before it is the client's own claim.
        """
        found = peer
        for text in reversed(",".join(forwarded_for).split(",")):
            address = parse_address(text)
            if address is None:
                break
            found = address
            if not self.trust(address):
                break
        return found


def parse_address(text: str) -> IPAddress | None:
    """Return an IP address, which may have a zone or a port; None for anything else.

    An IPv4 address that is written as one of IPv6 is returned as IPv4.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def address_in(peername: object) -> IPAddress | None:
    """Return the address in the name of a socket's peer; None for a Unix socket."""
    if not isinstance(peername, tuple):
        return None
    return parse_address(str(cast("tuple[object, ...]", peername)[0]))


def client_key(address: IPAddress | None) -> str:
    """Return what tells clients apart: an IPv4 address, an IPv6 /64, or nothing if unknown."""
    if address is None:
        return ""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(ip_network((address, _CLIENT_BITS), strict=False))
