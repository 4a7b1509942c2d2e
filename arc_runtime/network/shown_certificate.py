"""The certificate that a host shows, also where it was refused.

Python gives the certificate of a handshake only when it was accepted. So a second connection reads
it, and sends no request.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

_PEEK_SECONDS: Final = 5.0


async def shown_certificate(url: str, proxy: URL | str | None) -> bytes | None:
    """Return the certificate (DER) that the host of a URL shows; None if there is no handshake."""
    seen: list[bytes] = []

    class Peek(ssl.SSLObject):
        """A handshake that fails once the certificate is known."""

        def do_handshake(self) -> None:
            super().do_handshake()
            seen.append(self.getpeercert(binary_form=True) or b"")
            raise ssl.SSLError("the certificate is known")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.sslobject_class = Peek
    parts = urlsplit(url)
    origin = URL(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/")
    try:
        async with (
            asyncio.timeout(_PEEK_SECONDS),
            aiohttp.ClientSession() as session,
            session.head(origin, allow_redirects=False, proxy=proxy, ssl=context),
        ):
            pass
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        pass
    return seen[0] if seen else None
