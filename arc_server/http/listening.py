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


class Listener:
    """A bound socket, and where it is reached."""

    def __init__(self, bound: socket.socket, path: Path | None = None) -> None:
        """Take the socket. A Unix socket that was renamed since has another `path`."""
        self.socket: Final = bound
        name = bound.getsockname()
        is_unix = bound.family == socket.AF_UNIX
        self.host: Final[str | None] = None if is_unix else name[0]
        """The host of its address; None for a Unix socket."""
        self._place: Final = path or name if is_unix else name[1]

    def url(self, *, is_tls: bool) -> str:
        """Return scheme, host and port, or `unix:` and a path."""
        host = self.host
        if host is None:
            return f"unix:{self._place}"
        scheme = "https" if is_tls else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._place}"


def bind(address: Address) -> Listener:
    """Return a socket that is bound to an address. Raises OSError."""
    if isinstance(address, Path):
        return Listener(bind_path(address, UNIX_MODE, "server"), address)
    host, _ = address
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6:  # [::] takes IPv4 as well, however the host is set
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return Listener(bound)
