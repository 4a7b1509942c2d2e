"""The hosts that a URL from elsewhere may lead to, judged by the address that is connected to.

The agent trusts the server for commands only (docs/architecture.md, The agent): a URL must not make
its host send requests to its neighbours. The server treats push URLs likewise. Allowed are public
hosts and the agent's own server; private and loopback addresses only where the configuration names
them; link-local and metadata addresses never.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
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

from aiohttp.abc import AbstractResolver, ResolveResult
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
_LOOPBACK: Final = IPv4Address("127.0.0.1")
_NAT64: Final = ip_network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ip_network("2000::/3")
"""All public IPv6 addresses (IANA). Python's `is_global` is also true for site-local fec0::/10 and
for 64:ff9b:1::/48, which a local network may translate to any IPv4 address (RFC 8215)."""
_COMPATIBLE: Final = ip_network("::/96")


_SITE: Final = re.compile(r"https?://[^/?#]*", re.ASCII | re.IGNORECASE)
"""The start of a URL that says where it leads."""
_REMEMBERED: Final = 256


class HostRefused(Exception):
    """A URL leads to a host that is not allowed. The message names the host only."""


class HostPolicy:
    """The rule about hosts. It never changes; a reload makes another."""

    def __init__(
        self,
        server_url: str,
        allow_hosts: Iterable[str],
        *,
        allows_public: bool = True,
        setting: str = "transfer.allow_hosts",
    ) -> None:
        """Name the key of `allow_hosts` as `setting` in messages.

        Raise ValueError for an entry of `allow_hosts` that is neither a name nor a network.
        """
        self._setting = setting
        parts = urlsplit(server_url)
        self._own_host = _plain(parts.hostname or "")
        self._own_port = parts.port or (443 if parts.scheme == "https" else 80)
        self._allows_public = allows_public
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
        if found is None or found[0] not in self._allowed:
            self._check(url)
        if found is not None and len(self._allowed) < _REMEMBERED:
            self._allowed.add(found[0])

    def _check(self, url: str) -> None:
        """Judge a URL by its host. Raises HostRefused."""
        try:
            parts = urlsplit(url)
            host, port = _plain(parts.hostname or ""), parts.port
        except ValueError:
            raise HostRefused("a URL that cannot be parsed") from None
        if parts.scheme not in ("http", "https") or not host:
            raise HostRefused("not an http(s) URL")
        if "@" in parts.netloc:
            raise HostRefused(f"{host}: a URL with a user in it")
        if not _HOST.fullmatch(host):
            raise HostRefused("a host name with characters that no host name has")
        if host in _NEVER_NAMES:
            raise HostRefused(f"{host} is a metadata service")
        address = _literal(host)
        if address is not None:
            self._check_literal(host, address, port or (443 if parts.scheme == "https" else 80))
        elif host == "localhost":
            self._check_literal(host, _LOOPBACK, port or (443 if parts.scheme == "https" else 80))
        elif not (self._allows_public or self._is_named(host)):
            raise HostRefused(f"{host} is not among the allowed hosts")

    def check_unresolved(self, url: str) -> None:
        """Judge a URL whose name a proxy resolves, out of this agent's sight. Raises HostRefused.

        The proxy's own rules decide about the address. Names that can only mean a neighbour are
        refused here, unless the configuration names them.
        """
        host = _plain(urlsplit(url).hostname or "")
        if _literal(host) is not None or self._is_named(host):
            return
        if "." not in host or host.endswith(_NEIGHBOURS):
            raise HostRefused(f"{host} is a private name; see {self._setting}")

    def check_address(self, host: str, address: str, port: int | None = None) -> None:
        """Judge an address of `host`. Raises HostRefused."""
        found = ip_address(address.partition("%")[0])
        if port is not None and _embedded(found).is_loopback:
            self._check_literal(_plain(host), found, port)
        else:
            self._check_address(_plain(host), found)

    def _check_literal(self, host: str, address: Address, port: int) -> None:
        """Judge a host that is an address. A loopback address may be the server's own host."""
        if not (_embedded(address).is_loopback and self._is_own_host_loopback()):
            self._check_address(host, address)
        elif port != self._own_port and not self._is_listed(host, _embedded(address)):
            # A server on this machine does not open the other services of this machine.
            raise HostRefused(f"{host} is this machine; see {self._setting}")

    def _check_address(self, host: str, address: Address) -> None:
        """Apply the rules in order. Raises HostRefused."""
        real = _embedded(address)
        if any(real in network for network in _NEVER if network.version == real.version):
            raise HostRefused(f"{host} is a link-local, metadata or multicast address")
        if host == self._own_host or self._is_listed(host, real):
            return
        if not real.is_global or (real.version == 6 and real not in _GLOBAL_UNICAST):
            raise HostRefused(f"{host} has a private address; see {self._setting}")
        if not self._allows_public:
            raise HostRefused(f"{host} is not among the allowed hosts")

    def _is_named(self, host: str) -> bool:
        """Return True if a host is the server's own, or named in the configuration."""
        return (
            host == self._own_host
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

    def _is_own_host_loopback(self) -> bool:
        """Return True if the server runs on this machine."""
        address = _literal(self._own_host)
        return self._own_host == "localhost" or (address is not None and address.is_loopback)

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
        """Return the allowed addresses of `host`. Raises HostRefused when none is allowed."""
        found = await self._resolver.resolve(host, port, family)
        allowed: list[ResolveResult] = []
        refusal: HostRefused | None = None
        for entry in found:
            try:
                self.policy.check_address(host, entry["host"], port)
            except HostRefused as error:
                refusal = error
            else:
                allowed.append(entry)
        if not allowed and refusal is not None:
            raise refusal
        return allowed

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()


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
