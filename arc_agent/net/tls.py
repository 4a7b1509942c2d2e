"""The TLS contexts: which certificates are trusted, and which one this host shows.

A changed file makes a new context for new connections; open connections go on as they are. A file
that cannot be used (half written, or the key of another certificate) changes nothing until it can.
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

import structlog

from arc_agent.config.sections import TlsSection
from arc_agent.net.proxies import signature

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class TlsError(Exception):
    """A file cannot be used. `key` is the setting that names it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason


class Tls:
    """The current contexts. Safe from any thread."""

    def __init__(self, settings: TlsSection) -> None:
        """Read all files. Raises TlsError."""
        self._settings = settings
        self._lock = threading.Lock()
        self._own: ssl.SSLContext | bool = True
        self._others: ssl.SSLContext | bool = True
        self._seen: object = None
        self._refused: object = None
        self._files = (
            settings.ca_file,
            settings.client_cert,
            settings.client_key,
            settings.crl_file,
        )
        if settings.ca_only and settings.ca_file is None:
            raise TlsError("tls.ca_only", "needs tls.ca_file")
        if settings.client_key is not None and settings.client_cert is None:
            raise TlsError("tls.client_key", "needs tls.client_cert")
        self._make(self._signature())

    @property
    def has_certificate(self) -> bool:
        """Return True if this host has a certificate to show."""
        return self._settings.client_cert is not None

    def context(self, *, is_own: bool) -> ssl.SSLContext | bool:
        """Return aiohttp's argument `ssl`, for the server or for another host."""
        if any(self._files):
            with self._lock:
                self._reload_changed()
        return self._own if is_own else self._others

    def _signature(self) -> object:
        """Return a value that changes with the files; None while one cannot be read."""
        try:
            return signature(self._files)
        except OSError:
            return None

    def _reload_changed(self) -> None:
        """Make new contexts if files have changed and can be used."""
        seen = self._signature()
        if seen in (self._seen, self._refused) or seen is None:
            return
        try:
            self._make(seen)
        except TlsError as error:
            self._refused = seen
            log.error("tls.files_unusable", key=error.key, reason=error.reason)
        else:
            self._refused = None
            log.info("tls.files_read_again")

    def _make(self, seen: object) -> None:
        """Make the contexts from the files. Raises TlsError."""
        others = _trusting(self._settings)
        own = others
        if self._settings.client_cert is not None:
            own = _trusting(self._settings, always=True)
            _show(own, self._settings.client_cert, self._settings.client_key)
        self._own, self._others, self._seen = own, others, seen


def _trusting(settings: TlsSection, *, always: bool = False) -> ssl.SSLContext | bool:
    """Return a context with the trusted certificates; True, aiohttp's own, for the system's."""
    if not always and settings.ca_file is None and settings.crl_file is None:
        return True
    context = _default(settings.ca_file if settings.ca_only else None)
    context.set_alpn_protocols(("http/1.1",))
    if settings.ca_file is not None and not settings.ca_only:
        _load(context, "tls.ca_file", settings.ca_file)
    if settings.crl_file is not None:
        _load(context, "tls.crl_file", settings.crl_file)
        context.verify_flags |= (
            ssl.VERIFY_CRL_CHECK_CHAIN
            if settings.crl_check == "chain"
            else ssl.VERIFY_CRL_CHECK_LEAF
        )
    return context


def _default(ca_file: Path | None) -> ssl.SSLContext:
    """Return Python's default context with the system's certificates, or only those of a file."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise TlsError("tls.ca_file", f"{ca_file} {_why(error)}") from None


def _load(context: ssl.SSLContext, key: str, file: Path) -> None:
    """Load certificates or lists of revoked certificates. Raises TlsError."""
    try:
        context.load_verify_locations(file)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(key, f"{file} {_why(error)}") from None


def _show(context: ssl.SSLContext | bool, cert: Path, key: Path | None) -> None:
    """Load the certificate that a context shows. Raises TlsError."""
    assert isinstance(context, ssl.SSLContext)
    for name, file in (("tls.client_cert", cert), ("tls.client_key", key)):
        try:
            if file is not None:
                file.open("rb").close()  # OpenSSL does not say which of them it cannot read
        except OSError as error:
            raise TlsError(name, f"{file} {_why(error)}") from None
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise TlsError("tls.client_cert", f"{cert} {_why(error)}") from None


def _no_password() -> str:
    """Refuse a key with a password: a daemon cannot ask for it. Raises ValueError."""
    raise ValueError("the key has a password; store it without, readable by the agent only")


def _why(error: Exception) -> str:
    """Return why a file cannot be used, in a few words."""
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if reason == "KEY_VALUES_MISMATCH":
            return "cannot be used: the key belongs to another certificate"
        if reason in ("", "NO_START_LINE", "NO_CERTIFICATE_OR_CRL_FOUND"):
            return "cannot be used: it holds no readable PEM"
        return f"cannot be used: {reason.replace('_', ' ').lower()}"
    if isinstance(error, OSError):
        return f"cannot be used: {error.strerror}"
    return f"cannot be used: {error}"
