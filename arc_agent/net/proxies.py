"""The proxy of a request and its credentials: `proxy.url`, else the environment's variables.

aiohttp does not read the environment itself: its `trust_env` would also send the passwords of
~/.netrc. Logs show host and port of a proxy, never a password.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from yarl import URL

from arc_agent.config.sections import ProxySection
from arc_runtime.logs.redaction import keep_secret

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_MAX_AUTH_BYTES: Final = 4096
_PORTS: Final = {"http": 80, "https": 443}


Credentials = tuple[str, str]
"""User and password."""


class Proxy:
    """A proxy and the credentials for it. Its text form has no credentials."""

    def __init__(self, url: URL, credentials: Credentials | None) -> None:
        self.url = url
        """The URL with user and password, for aiohttp only."""
        if credentials is not None:
            # aiohttp encodes them in Latin-1, RFC 7617 wants UTF-8: these are the octets of UTF-8.
            user, password = (each.encode().decode("latin-1") for each in credentials)
            self.url = url.with_user(user).with_password(password)

    def __repr__(self) -> str:
        """Return host and port."""
        return self.name

    @property
    def name(self) -> str:
        """Return host and port, for a log line."""
        return f"{self.url.host}:{self.url.port}"


class Proxies:
    """The choice of a proxy for each URL. Safe from any thread."""

    def __init__(self, settings: ProxySection, environ: Mapping[str, str] | None = None) -> None:
        """Use `environ`, or the process's own.

        Raises ValueError for a URL or an exception that cannot be used, OSError for a file that
        cannot be read.
        """
        self._settings = settings
        self._environ = os.environ if environ is None else environ
        self._exceptions = tuple(map(_Exception, settings.except_hosts))
        self._auth: tuple[object, Credentials] | None = None
        if settings.url is not None:
            _parsed(settings.url)
            self._of_file()

    def of(self, url: str) -> Proxy | None:
        """Return the proxy for a URL; None for a direct connection, as to this machine itself.

        Raises ValueError when the environment names a proxy that is not http(s), OSError when the
        credentials cannot be read.
        """
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").lower()
        if host in _LOOPBACK or host.endswith(".localhost"):
            return None
        text, exceptions = self._settings.url, self._exceptions
        if text is None:
            text = self._named(parts.scheme) if self._settings.from_environment else None
            exceptions = tuple(_listed(self._variable("no_proxy") or ""))
        port = parts.port or _PORTS.get(parts.scheme, 0)
        if text is None or any(each.covers(host, port) for each in exceptions):
            return None
        parsed = _parsed(text)
        credentials = _of_url(parsed) or self._of_file()
        host = f"[{parsed.hostname}]" if ":" in (parsed.hostname or "") else parsed.hostname
        where = URL(f"{parsed.scheme}://{host}:{parsed.port or _PORTS[parsed.scheme]}")
        return Proxy(where, credentials)

    def _named(self, scheme: str) -> str | None:
        """Return the environment's proxy for a scheme."""
        if scheme == "http" and "REQUEST_METHOD" in self._environ:
            return self._environ.get("http_proxy")  # HTTP_PROXY may be a visitor's header (CGI)
        return self._variable(f"{scheme}_proxy") or self._variable("all_proxy")

    def _variable(self, name: str) -> str | None:
        """Return a variable in lower or else in upper case, like curl."""
        return self._environ.get(name) or self._environ.get(name.upper()) or None

    def _of_file(self) -> Credentials | None:
        """Return the credentials in the file, read again after a change. Raises OSError."""
        file = self._settings.auth_file
        if file is None:
            return None
        seen = signature([file])
        if self._auth is None or self._auth[0] != seen:
            self._auth = (seen, _read(file))
        return self._auth[1]


class _Exception:
    """An entry of NO_PROXY: `*`, a host and its subdomains, an address or a network; `:port`."""

    def __init__(self, entry: str) -> None:
        """Raise ValueError for a malformed network."""
        text, self._port = entry.strip().lower(), 0
        bare = text.strip("[]")
        name, colon, port = text.rpartition(":")
        if colon and port.isdecimal() and (":" not in name or name.startswith("[")):
            bare, self._port = name.strip("[]"), int(port)
        self._network = None
        try:
            self._network = ip_network(bare, strict=False)
        except ValueError:
            if "/" in bare:
                raise ValueError(f"{entry} is neither a host nor a network") from None
        self._name = bare.removeprefix("*").strip(".") if bare != "*" else bare

    def covers(self, host: str, port: int) -> bool:
        """Return True if the entry covers a host and port."""
        if self._port and self._port != port:
            return False
        if self._name == "*":
            return True
        if self._network is not None:
            try:
                address = ip_address(host.partition("%")[0])
            except ValueError:
                return False  # names are not resolved here: perhaps only the proxy can
            return address.version == self._network.version and address in self._network
        return bool(self._name) and (host == self._name or host.endswith(f".{self._name}"))


def _listed(text: str) -> Iterator[_Exception]:
    """Yield the entries of NO_PROXY; skip malformed ones, like curl."""
    for entry in filter(None, map(str.strip, text.split(","))):
        with suppress(ValueError):
            yield _Exception(entry)


def signature(files: Iterable[Path | None]) -> tuple[object, ...]:
    """Return a value that changes when any of the files is changed or replaced. Raises OSError."""
    found = [file.stat() for file in files if file is not None]
    return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)


def _parsed(text: str) -> SplitResult:
    """Return the parts of a proxy's URL; the default scheme is http.

    Raises ValueError, which does not quote it.
    """
    with suppress(ValueError):
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.scheme in _PORTS and parts.hostname and parts.port != 0:
            return parts
    raise ValueError("Expected an http(s) proxy such as http://proxy.corp:3128")


def _of_url(parts: SplitResult) -> Credentials | None:
    """Return user and password of a URL. Raises ValueError."""
    if not parts.username:
        return None
    return _credentials(unquote(parts.username), unquote(parts.password or ""), "its URL")


def _read(file: Path) -> Credentials:
    """Return user and password of a file. Raises OSError, or ValueError that does not quote it."""
    with file.open("rb") as opened:
        data = opened.read(_MAX_AUTH_BYTES)
    try:
        user, colon, password = data.decode().strip("\r\n").partition(":")
    except UnicodeDecodeError:
        raise ValueError(f"{file} does not hold user:password") from None
    if not (user and colon):
        raise ValueError(f"{file} does not hold user:password")
    return _credentials(user, password, str(file))


def _credentials(user: str, password: str, where: str) -> Credentials:
    """Return user and password if a header can hold them (RFC 7617). Raises ValueError."""
    if ":" in user or not (user + password).isprintable():
        raise ValueError(f"the credentials in {where} hold characters that may not be sent")
    keep_secret(password, b64encode(f"{user}:{password}".encode()).decode())
    return user, password
