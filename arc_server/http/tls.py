"""TLS of the server: its certificate, which is replaced while connections go on, and handshakes.

Every handshake takes the context that is in force at the time. A new context is made whole before
it comes into force, so a pair that does not fit harms nothing, and open connections keep theirs.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog

from arc_runtime.network.certificates import Certificate, read_certificate
from arc_server.http.proxies import IPAddress, address_in

log = structlog.get_logger(__name__)

HANDSHAKE_SECONDS: Final = 10.0
"""The time that a client has for its handshake."""
ACCEPTED_AT_ONCE: Final = 64
"""Connections that are accepted before others get their turn."""
PAUSE_SECONDS: Final = 0.5
"""The time for which nothing is accepted when no descriptors are left."""
GOODBYE_SECONDS: Final = 2.0
"""The time that a client has to answer the end of TLS before the connection is cut off."""

_CERT, _KEY, _CLIENT_CA = "cert_file", "key_file", "client_ca_file"


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a server's TLS (PEM)."""

    cert_file: Path
    """The certificate and its chain."""
    key_file: Path | None = None
    """The certificate's key; None: in `cert_file`."""
    client_ca_file: Path | None = None
    """The authorities of client certificates; None: clients need none."""


class TlsUnusable(Exception):
    """Certificate, key or authorities cannot be used. `key` names the file's setting."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class ServerTls:
    """The TLS context in force, and its replacement when the files change."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files. Raises TlsUnusable."""
        self._files = files
        self._stamp = self._stamp_now()
        self.context, self.certificate = _load(files)

    def reload(self) -> None:
        """Read the files again. If they cannot be used, log why and keep what is in force."""
        stamp = self._stamp_now()
        try:
            self.context, self.certificate = _load(self._files)
        except TlsUnusable as error:
            log.error("tls.reload_failed", key=f"tls.{error.key}", reason=str(error))
        else:
            log.info("tls.reloaded", certificate=str(self.certificate))
            self.warn_of_expiry()
        self._stamp = stamp

    def warn_of_expiry(self) -> None:
        """Log a warning if the certificate is not valid now."""
        if not self.certificate.not_before <= datetime.now(UTC) <= self.certificate.not_after:
            log.warning("tls.certificate_not_valid", certificate=str(self.certificate))

    async def follow(self, interval_seconds: float) -> None:
        """Reload whenever a file has changed, until cancelled."""
        while True:
            await asyncio.sleep(interval_seconds)
            if self._stamp_now() != self._stamp:
                self.reload()

    def _stamp_now(self) -> list[tuple[int, ...] | None]:
        """Return what tells that a file was replaced or written to."""
        paths = (self._files.cert_file, self._files.key_file, self._files.client_ca_file)
        return [None if path is None else _stamp(path) for path in paths]


class TlsHandshake:
    """A connection that was accepted, until its handshake is over."""

    def __init__(self, client: socket.socket) -> None:
        self.peer: Final[IPAddress | None] = _peer(client)
        self._client = client
        self._task: asyncio.Task[None] | None = None

    def begin(
        self,
        context: ssl.SSLContext,
        protocol: asyncio.Protocol,
        ended: Callable[[TlsHandshake], None],
    ) -> None:
        """Begin the handshake. The protocol gets the connection, and `ended` is called."""

        async def shake_hands() -> None:
            try:
                with suppress(OSError):  # of which TimeoutError and ssl.SSLError are
                    await loop.connect_accepted_socket(
                        lambda: protocol,
                        self._client,
                        ssl=context,
                        ssl_handshake_timeout=HANDSHAKE_SECONDS,
                        ssl_shutdown_timeout=GOODBYE_SECONDS,
                    )
            finally:
                ended(self)

        loop = asyncio.get_running_loop()
        self._task = loop.create_task(shake_hands())

    def abort(self) -> None:
        """Cut the connection off."""
        if self._task is None:
            self._client.close()
        else:
            self._task.cancel()


class TlsListener:
    """A listening socket whose connections are counted from the moment that they are accepted.

    A server of the event loop calls its protocol only after the handshake, and never for a client
    that sends nothing.
    """

    def __init__(self, listener: socket.socket, accepted: Callable[[TlsHandshake], None]) -> None:
        """Call `accepted` for each connection, until `close`."""
        self._listener = listener
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Accept no more."""
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptors are left: the server logs that by itself
                self._loop.remove_reader(self._listener.fileno())
                self._paused = self._loop.call_later(PAUSE_SECONDS, self._resume)
                return
            client.setblocking(False)
            self._accepted(TlsHandshake(client))


def _load(files: TlsFiles) -> tuple[ssl.SSLContext, Certificate]:
    """Return a context of the files, and the certificate in them. Raises TlsUnusable."""
    for key in (_CERT, _KEY, _CLIENT_CA):
        path: Path | None = getattr(files, key)
        if path is not None:
            _check_readable(key, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    certificate = _certificate_in(files.cert_file)

    def no_password() -> str:
        raise TlsUnusable(_KEY, f"{files.key_file or files.cert_file}: the key has a password")

    try:
        context.load_cert_chain(files.cert_file, files.key_file, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"{files.cert_file}: the certificate is not of the key"
            raise TlsUnusable(_CERT, reason) from None
        reason = f"{files.key_file or files.cert_file}: holds no usable key (PEM)"
        reason += "" if files.key_file else "; is it in a file of its own, for tls.key_file?"
        raise TlsUnusable(_KEY if files.key_file else _CERT, reason) from None
    if files.client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(files.client_ca_file)
        except ssl.SSLError:
            reason = f"{files.client_ca_file}: holds no certificates (PEM)"
            raise TlsUnusable(_CLIENT_CA, reason) from None
    return context, certificate


def _check_readable(key: str, path: Path) -> None:
    try:
        if path.is_fifo():  # opening it would wait for a writer, and the server with it
            raise TlsUnusable(key, f"{path}: Is a named pipe")
        path.open("rb").close()
    except OSError as error:
        raise TlsUnusable(key, f"{path}: {error.strerror}") from None


def _certificate_in(path: Path) -> Certificate:
    """Return the first certificate of a file: the server's own. Raises TlsUnusable."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    try:
        _, found, rest = path.read_text("latin-1").partition(begin)
        body, _, _ = rest.partition(end)
        return read_certificate(ssl.PEM_cert_to_DER_cert(f"{found}{body}{end}\n"))
    except OSError as error:
        raise TlsUnusable(_CERT, f"{path}: {error.strerror}") from None
    except ValueError:
        raise TlsUnusable(_CERT, f"{path}: holds no certificate (PEM)") from None


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does; nothing while it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _peer(client: socket.socket) -> IPAddress | None:
    """Return the address of the other end; None if it has gone."""
    try:
        return address_in(client.getpeername())
    except OSError:
        return None
