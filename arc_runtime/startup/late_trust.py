"""Certificates of the system, read when TLS is first spoken and not when aiohttp is imported.

aiohttp makes its contexts at import, each with all that the system trusts: 2 MB and some time that
an agent with contexts of its own never gets anything for.
"""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


class LateTrust(ssl.SSLContext):
    """A context that verifies as Python's default does, and looks up whom to trust at first use.

    Until then it trusts nobody: whatever goes by it unseen fails closed. Safe from any thread.
    """

    def __new__(cls) -> LateTrust:
        """A context for clients: certificate and host name are checked."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_read = False
        if sys.version_info >= (3, 13):  # what create_default_context does there
            self.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """As of any context; asyncio speaks TLS by it."""
        self._read()
        return super().wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """As of any context."""
        self._read()
        return super().wrap_socket(*args, **kwargs)

    def _read(self) -> None:
        """Read what the system trusts, once."""
        with self._lock:
            if not self._is_read:
                self.load_default_certs()
                self._is_read = True


@contextmanager
def contexts_made_late() -> Generator[None]:
    """Meanwhile `ssl.create_default_context()` makes contexts of this kind. For an import alone."""
    real = ssl.create_default_context

    def late(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        return real(*args, **kwargs) if args or kwargs else LateTrust()

    def nothing(self: ssl.SSLContext) -> None:  # a method
        """aiohttp's other context verifies nothing: it needs to trust nobody."""

    ssl.create_default_context = late
    ssl.SSLContext.set_default_verify_paths = nothing
    try:
        yield
    finally:
        ssl.create_default_context = real
        del ssl.SSLContext.set_default_verify_paths  # the one of its base is back
