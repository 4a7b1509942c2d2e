"""Late trust reads the system's certificates at the first TLS connection.

aiohttp makes its contexts when it is imported, each with every certificate that the system trusts:
2 MB and some time that an agent with contexts of its own has no use for.
"""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


class LateTrust(ssl.SSLContext):
    """A late trust verifies as Python's default context does, and reads the certificates when used.

    Until then it trusts no certificate: a use that it does not notice fails closed. Safe from any
    thread.
    """

    def __new__(cls) -> LateTrust:
        """Return a context for clients: certificate and host name are checked."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_read = False
        if sys.version_info >= (3, 13):  # as create_default_context does
            self.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Wrap for asyncio, which speaks TLS by this."""
        self._read()
        return super().wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """Wrap a socket."""
        self._read()
        return super().wrap_socket(*args, **kwargs)

    def _read(self) -> None:
        """Read the system's certificates, once."""
        with self._lock:
            if not self._is_read:
                self.load_default_certs()
                self._is_read = True


@contextmanager
def contexts_made_late() -> Generator[None]:
    """Let `ssl.create_default_context()` make late trusts, for as long as the context lasts."""
    real = ssl.create_default_context

    def late(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        return real(*args, **kwargs) if args or kwargs else LateTrust()

    def nothing(self: ssl.SSLContext) -> None:
        """Read nothing: aiohttp's other context verifies nothing."""

    ssl.create_default_context = late
    ssl.SSLContext.set_default_verify_paths = nothing
    try:
        yield
    finally:
        ssl.create_default_context = real
        del ssl.SSLContext.set_default_verify_paths  # which restores the base's
