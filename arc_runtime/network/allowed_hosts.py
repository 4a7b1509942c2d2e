"""The hosts that a URL from the server may lead to, judged by the address that is connected to.

Agent and sender trust the server for commands and results only (docs/architecture.md, The agent): a
URL must not make their host send requests to its neighbours. Allowed are public hosts and the
server itself; private and loopback addresses only where the configuration names them; link-local
and metadata addresses never.

The server itself is its scheme, host and port. Its name may stand for a private address only where
the server proves to be there: by the certificate that the connection verifies, or, by plain HTTP,
because it has answered a request with the token from there. Else an answer of a name server could
open every service of this host and of its neighbours.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import Connection
from aiohttp.resolver import ThreadedResolver

Address = IPv4Address | IPv6Address

_NEVER: Final = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",  # link-local; the metadata services of most clouds
        "100.100.100.200/32",  # Alibaba Cloud's metadata
        "192.0.0.192/32",  # Oracle Cloud's metadata
        "168.63.129.16/32",  # Azure's host agent
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/128",
        "fe80::/10",
        "fd00:ec2::254/128",  # Amazon's metadata
        "fd20:ce::254/128",  # Google's metadata
        "ff00::/8",
    )
)
_NEVER_NAMES: Final = ("metadata.google.internal", "metadata", "instance-data")
_NEIGHBOURS: Final = (
    ".localhost",
    ".local",
    ".localdomain",
    ".internal",
    ".intranet",
    ".private",
    ".corp",
    ".home",
    ".lan",
    ".home.arpa",
)
"""Names that no public resolver knows (RFC 6761, 6762, 8375; ICANN's collision list)."""
_HOST: Final = re.compile(r"[a-z0-9_.-]{1,253}|[0-9a-f:.]+(%25[a-z0-9._-]+)?", re.ASCII)
"""Names as DNS has them (others in Punycode), and addresses: without escapes, and without
characters that a resolver would fold into others."""
_SITE: Final = re.compile(r"https?://[^/?#]*", re.ASCII | re.IGNORECASE)
"""The part of a URL that says where it leads."""
_LOOPBACK: Final = IPv4Address("127.0.0.1")
_NAT64: Final = ip_network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ip_network("2000::/3")
"""All public IPv6 addresses (IANA). Python's `is_global` is also true for site-local fec0::/10 and
for 64:ff9b:1::/48, which a local network may translate to any IPv4 address (RFC 8215)."""
_COMPATIBLE: Final = ip_network("::/96")


_REMEMBERED: Final = 256
_ADDRESSES_KEPT: Final = 8
"""The server's addresses that are remembered: a name mostly stands for one or two."""


class HostRefused(Exception):
    """A URL leads to a host that is not allowed. The message names the host only."""


class UnprovenAddress(HostRefused):
    """The server has not answered at this address yet. It may: the request can be tried again."""


class ServerAddresses:
    """The last addresses from which the server answered. Safe from any thread."""

    def __init__(self) -> None:
        self._known: tuple[Address, ...] = ()

    def add(self, peer: str | None) -> None:
        """Take in the address that an answer of the server came from; None adds nothing."""
        if peer is None:
            return
        address = _embedded(ip_address(peer.partition("%")[0]))
        if address not in self._known:
            self._known = (address, *self._known[: _ADDRESSES_KEPT - 1])

    def __contains__(self, address: Address) -> bool:
        return address in self._known


class PeerResponse(aiohttp.ClientResponse):
    """An answer that knows the address it came from, for `ClientSession(response_class=…)`."""

    peer: str | None = None
    """None where the connection has no address."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Read the head of the answer."""
        transport = connection.transport
        name = transport.get_extra_info("peername") if transport is not None else None
        self.peer = name[0] if isinstance(name, tuple) and name else None
        return await super().start(connection)


class HostPolicy:
    """The rule about hosts. It never changes; a reload makes another."""

    def __init__(
        self,
        server_url: str,
        allow_hosts: Iterable[str],
        *,
        allows_public: bool = True,
        has_answered: Callable[[Address], bool] | None = None,
        setting: str = "transfer.allow_hosts",
    ) -> None:
        """Raise ValueError for an entry of `allow_hosts` that is neither a name nor a network.

        `has_answered` returns True for an address at which a server without a certificate has
        answered; without it, the server's name is trusted. `setting` names `allow_hosts` in
        messages.
        """
        parts = urlsplit(server_url)
        self._own_scheme = parts.scheme
        self._own_host = _plain(parts.hostname or "")
        self._own_port = parts.port or _default_port(parts.scheme)
        self._allows_public = allows_public
        self._setting = setting
        # By https the certificate proves the address; a literal address is as configured.
        is_proven = parts.scheme == "https" or _address_of(self._own_host) is not None
        self._has_answered = None if is_proven else has_answered
        self._names: set[str] = set()
        self._suffixes: list[str] = []
        self._networks: list[IPv4Network | IPv6Network] = []
        self._allowed: set[str] = set()
        """Starts of URLs that were judged before: every command has two, mostly the server's."""
        for entry in allow_hosts:
            self._allow(entry.strip())

    def check(self, url: str) -> None:
        """Judge a URL by its host. A name is judged again by its addresses. Raises HostRefused."""
        found = _SITE.match(url)
        site = found[0] if found is not None else None
        if site is None or site not in self._allowed:
            self._check(url)
        if site is not None and len(self._allowed) < _REMEMBERED:
            self._allowed.add(site)

    def _check(self, url: str) -> None:
        """Judge a URL by its host. Raises HostRefused."""
        scheme, host, port = _parsed(url)
        if not _HOST.fullmatch(host):
            raise HostRefused("a host name with characters that no host name has")
        if host in _NEVER_NAMES:
            raise HostRefused(f"{host} is a metadata service")
        address = _address_of(host)
        if port == self._own_port and scheme != self._own_scheme and self._is_own(host, address):
            raise HostRefused(f"{host} is the server, which is not called by {scheme}")
        if address is not None:
            self._check_address(host, address, port)
        elif not (self._allows_public or self._is_named(host, port)):
            raise HostRefused(f"{host} is not among the allowed hosts")

    def check_unresolved(self, url: str) -> None:
        """Judge a URL whose name a proxy resolves, out of this host's sight. Raises HostRefused.

        The proxy's own rules decide about the address. Names that can only mean a neighbour are
        refused here, unless the configuration names them.
        """
        _, host, port = _parsed(url)
        if _literal(host) is not None or self._is_named(host, port):
            return
        if "." not in host or host.endswith(_NEIGHBOURS):
            raise HostRefused(f"{host} is a private name; see {self._setting}")

    def check_address(self, host: str, address: str, port: int) -> None:
        """Judge an address of `host`. Raises HostRefused, UnprovenAddress."""
        self._check_address(_plain(host), ip_address(address.partition("%")[0]), port)

    def _check_address(self, host: str, address: Address, port: int) -> None:
        """Apply the rules in order. Raises HostRefused, UnprovenAddress."""
        real = _embedded(address)
        if any(real in network for network in _NEVER if network.version == real.version):
            raise HostRefused(f"{host} is a link-local, metadata or multicast address")
        if self._is_listed(host, real):
            return
        is_public = real.is_global and (real.version == 4 or real in _GLOBAL_UNICAST)
        if port == self._own_port and self._is_own(host, real):
            if not (is_public or self._has_answered is None or self._has_answered(real)):
                raise UnprovenAddress(f"{host} has not answered at {address} yet")
            return
        if real.is_loopback and self._is_own(host, real):
            # A server on this machine does not open the other services of this machine.
            raise HostRefused(f"{host} is this machine; see {self._setting}")
        if not is_public:
            raise HostRefused(f"{host} has a private address; see {self._setting}")
        if not self._allows_public:
            raise HostRefused(f"{host} is not among the allowed hosts")

    def _is_own(self, host: str, address: Address | None) -> bool:
        """Return True for the server's host, and for this machine if the server runs on it."""
        if host == self._own_host:
            return True
        own = _address_of(self._own_host)
        is_here = address is not None and _embedded(address).is_loopback
        return is_here and own is not None and _embedded(own).is_loopback

    def _is_named(self, host: str, port: int) -> bool:
        """Return True if a host is the server itself, or named in the configuration."""
        return (
            (host == self._own_host and port == self._own_port)
            or host in self._names
            or any(host.endswith(suffix) for suffix in self._suffixes)
        )

    def _is_listed(self, host: str, address: Address) -> bool:
        """Return True if the configuration names a host or its address."""
        return (
            host in self._names
            or any(host.endswith(suffix) for suffix in self._suffixes)
            or any(address in each for each in self._networks if each.version == address.version)
        )

    def _allow(self, entry: str) -> None:
        """Add an entry of the configuration. Raises ValueError."""
        if not entry or entry == "*":
            raise ValueError("a host such as blobs.corp, *.corp, or a network such as 10.2.0.0/16")
        try:
            self._networks.append(ip_network(entry, strict=False))
        except ValueError:
            if "/" in entry or ":" in entry:
                raise ValueError(f"{entry} is neither a host name nor a network") from None
            if entry.startswith("*."):
                self._suffixes.append(_plain(entry[1:]))
            else:
                self._names.add(_plain(entry))


class GuardedResolver(AbstractResolver):
    """A resolver that returns allowed addresses only: the address judged is the address used."""

    def __init__(self, policy: HostPolicy) -> None:
        self.policy = policy
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the allowed addresses of `host`.

        Raises HostRefused when none is allowed, and OSError when one may be allowed later.
        """
        found = await self._resolver.resolve(host, port, family)
        allowed: list[ResolveResult] = []
        refusal: HostRefused | None = None
        for entry in found:
            try:
                self.policy.check_address(host, entry["host"], port)
            except UnprovenAddress as error:
                refusal = error
            except HostRefused as error:
                refusal = refusal or error
            else:
                allowed.append(entry)
        if not allowed and isinstance(refusal, UnprovenAddress):
            raise OSError(errno.EHOSTUNREACH, str(refusal)) from refusal
        if not allowed and refusal is not None:
            raise refusal
        return allowed

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()


def _parsed(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of an http(s) URL. Raises HostRefused for any other."""
    try:
        parts = urlsplit(url)
        host, port = _plain(parts.hostname or ""), parts.port
    except ValueError:
        raise HostRefused("a URL that cannot be parsed") from None
    if parts.scheme not in ("http", "https") or not host:
        raise HostRefused("not an http(s) URL")
    if "@" in parts.netloc:
        raise HostRefused(f"{host}: a URL with a user in it")
    return parts.scheme, host, port or _default_port(parts.scheme)


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _address_of(host: str) -> Address | None:
    """Return the address that a host is without a look-up; None for a name."""
    return _LOOPBACK if host == "localhost" else _literal(host)


def _plain(host: str) -> str:
    """Return a host in lower case, without brackets and without the dot at its end."""
    return host.strip("[]").rstrip(".").lower()


@lru_cache(maxsize=64)
def _literal(host: str) -> Address | None:
    """Return the address that a host is in any spelling of a resolver; None for a name."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:  # the C library reads 127.1, 0x7f000001 and 2130706433 as addresses
        return IPv4Address(socket.inet_aton(host)) if host[:1].isdigit() else None
    except OSError:
        return None


def _embedded(address: Address) -> Address:
    """Return the IPv4 address inside an IPv6 address, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _COMPATIBLE and int(address) > 1:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
