"""Addresses as the configuration writes them: the server's URL, and a socket to listen on."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def base_url(url: str) -> tuple[str, str]:
    """Return the server's URL without `/v1` and slashes at its end, and its query.

    The query starts with `?`, or is empty.

    Raises ValueError when it is not an http(s) URL, or holds a user or password.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("Expected an http(s) URL such as https://arc.example.com")
    if "@" in parts.netloc:
        raise ValueError("a user or password does not belong in the URL")
    path = "/".join(part for part in parts.path.split("/") if part)
    path = path.removesuffix("v1").rstrip("/") if path == "v1" or path.endswith("/v1") else path
    base = f"{parts.scheme}://{parts.netloc}" + (f"/{path}" if path else "")
    return base, f"?{parts.query}" if parts.query else ""


def listen_address(listen: str) -> tuple[str, int]:
    """Return host and port of `127.0.0.1:9180` or `[::1]:9180`. Raises ValueError."""
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    is_port = port.isascii() and port.isdecimal() and int(port) <= 65_535
    if not (colon and is_port and (host == "localhost" or _is_ip_address(host))):
        raise ValueError("Expected an address and a port such as 127.0.0.1:9180")
    return host, int(port)


def _is_ip_address(host: str) -> bool:
    """Return True if a host is an IP address, False if it is a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
