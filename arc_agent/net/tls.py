"""Whose certificates are accepted, which one this host shows, and what changed files mean.

A context is made anew when one of its files has changed: new connections use it, those that exist
go on as they are. A file that cannot be used (half of it written yet, the key of another
certificate) changes nothing until it can.
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
    """Files that cannot be used. `key` is the setting that names the file."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason


class Tls:
    """The contexts in force. Safe from any thread."""

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
        """Whether this host has a certificate to show."""
        return self._settings.client_cert is not None

    def context(self, *, is_own: bool) -> ssl.SSLContext | bool:
        """What aiohttp's `ssl` takes, for the server itself or for any other host."""
        if any(self._files):
            with self._lock:
                self._look()
        return self._own if is_own else self._others

    def _signature(self) -> object:
        """What tells that a file has changed; None while one cannot be looked at."""
        try:
            return signature(self._files)
        except OSError:
            return None

    def _look(self) -> None:
        """Take changed files in, if they can be used."""
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
        """The contexts of the files as they are. Raises TlsError."""
        others = _trusting(self._settings)
        own = others
        if self._settings.client_cert is not None:
            own = _trusting(self._settings, always=True)
            _show(own, self._settings.client_cert, self._settings.client_key)
        self._own, self._others, self._seen = own, others, seen


def _trusting(settings: TlsSection, *, always: bool = False) -> ssl.SSLContext | bool:
    """A context that knows whom to trust; True stands for aiohttp's own, the system's alone."""
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
    """Python's default, trusting the system's certificates or only those of a file."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise TlsError("tls.ca_file", _why(error)) from None


def _load(context: ssl.SSLContext, key: str, file: Path) -> None:
    """Take in certificates or lists of revoked ones. Raises TlsError."""
    try:
        context.load_verify_locations(file)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(key, _why(error)) from None


def _show(context: ssl.SSLContext | bool, cert: Path, key: Path | None) -> None:
    """Have a context show a certificate. Raises TlsError."""
    assert isinstance(context, ssl.SSLContext)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise TlsError("tls.client_cert", _why(error)) from None


def _no_password() -> str:
    """Nobody is there to type one."""
    raise ValueError("the key has a password; store it without, readable by the agent only")


def _why(error: Exception) -> str:
    """Why a file cannot be used, in a few words."""
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if reason == "KEY_VALUES_MISMATCH":
            return "the key belongs to another certificate"
        if reason in ("", "NO_START_LINE", "NO_CERTIFICATE_OR_CRL_FOUND"):
            return "cannot be used: it holds nothing that can be read (PEM is expected)"
        return f"cannot be used: {reason.replace('_', ' ').lower()}"
    if isinstance(error, OSError):
        return f"cannot be used: {error.strerror}"
    return str(error)
