"""Sockets that the server listens on: its own, or those that systemd hands it (`LISTEN_FDS`).

systemd keeps its sockets open while the server restarts, so connections wait and none is refused.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from arc_runtime.control_socket import bind_path

UNIX_MODE: Final = 0o660
"""The server's user and group may connect: put the user of a proxy into the group."""

Address = tuple[str, int] | Path
"""Host and port, or the path of a Unix socket."""


def bind(address: Address) -> socket.socket:
    """Return a socket that is bound to an address. Raises OSError."""
    if isinstance(address, Path):
        return bind_path(address, UNIX_MODE, "server")
    host, _ = address
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:  # [::] takes IPv4 as well, however the host is set
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def is_unix(listener: socket.socket) -> bool:
    """Return True for a Unix socket."""
    return listener.family == socket.AF_UNIX


def host_of(listener: socket.socket) -> str | None:
    """Return the address that a socket listens on; None for a Unix socket."""
    return None if is_unix(listener) else str(listener.getsockname()[0])


def url_of(listener: socket.socket, *, is_tls: bool) -> str:
    """Return where a socket is reached: scheme, host and port, or `unix:` and a path."""
    if is_unix(listener):
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
