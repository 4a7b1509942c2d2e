"""Explanations of failed TLS handshakes and of proxies that refuse, for the person to mend them."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from arc_runtime.network.certificates import Certificate, read_certificate
from arc_runtime.network.setting_names import SettingNames

_NOT_YET: Final = 9
_EXPIRED: Final = 10
_REVOKED: Final = 23
_WRONG_HOST: Final = (62, 64)
_UNKNOWN: Final = (2, 18, 19, 20, 21, 27)
_NO_LIST: Final = 3
_OLD_LIST: Final = (11, 12)
_ALERTS: Final[Mapping[str, str]] = {
    "CERTIFICATE_REQUIRED": "wants a client certificate",
    "UNKNOWN_CA": "does not know who issued this host's certificate",
    "BAD_CERTIFICATE": "does not accept this host's certificate",
    "CERTIFICATE_EXPIRED": "says that this host's certificate has expired",
    "CERTIFICATE_REVOKED": "says that this host's certificate was revoked",
    "CERTIFICATE_UNKNOWN": "does not accept this host's certificate",
    "HANDSHAKE_FAILURE": "ends the handshake: it may want a client certificate",
}
"""Alerts about the certificate of this host."""
_OTHER_ALERTS: Final[Mapping[str, str]] = {
    "PROTOCOL_VERSION": "speaks no version of TLS that is accepted here",
    "WRONG_VERSION_NUMBER": "does not speak TLS: is its URL http:// and not https://?",
}


def explain(
    code: int,
    said: str,
    der: bytes | None,
    *,
    host: str,
    now: float,
    clock_offset: float | None,
    settings: SettingNames,
) -> str:
    """Return why a certificate is refused, which one it is, and what to do about it.

    `code` and `said` are OpenSSL's (X509_V_ERR_…), `der` the certificate of the host if it is
    known, `now` this host's clock as POSIX time.
    """
    certificate = None
    if der:
        with suppress(ValueError):
            certificate = read_certificate(der)
    if code in _UNKNOWN:
        why = (
            "its issuer is not trusted here; if that is a private CA, or a proxy that inspects TLS,"
            f" name its certificate in {settings.ca_file}"
        )
    else:
        why = _why(code, said, certificate, host=host, now=now, clock_offset=clock_offset)
    shown = f"; it is: {certificate}" if certificate is not None else ""
    return f"TLS: the certificate of {host} is refused: {why}{shown}"


def alert_of(error: BaseException | None, settings: SettingNames) -> str | None:
    """Return why the other side ended a handshake, or why there was none; None for other errors."""
    if error is None:
        return None
    # First what an HTTP client wraps: its own error may be an SSLError without a reason.
    for each in (getattr(error, "os_error", None), error.__cause__, error):
        if isinstance(each, ssl.SSLError):
            return _alert(each, settings)
    return None


def proxy_refusal(status: int, settings: SettingNames) -> str:
    """Return what the status of a proxy that refuses means, and what to do about it."""
    if status == 407:
        where = settings.proxy_credentials
        return f"does not accept the credentials, or wants some (407): {where}"
    if status == 403:
        return "does not allow it (403)"
    return f"answered {status}"


def _alert(error: ssl.SSLError, settings: SettingNames) -> str:
    reason: str = getattr(error, "reason", None) or ""
    for name, text in _ALERTS.items():
        if reason.endswith(name):
            setting = f": {settings.client_cert}" if settings.client_cert else ""
            return f"TLS: the other side {text}{setting}"
    for name, text in _OTHER_ALERTS.items():
        if reason.endswith(name):
            return f"TLS: the other side {text}"
    return f"TLS: {reason.replace('_', ' ').lower() or error}"


def _why(
    code: int,
    said: str,
    certificate: Certificate | None,
    *,
    host: str,
    now: float,
    clock_offset: float | None,
) -> str:
    """Return the reason, and what to do about it."""
    if code in (_NOT_YET, _EXPIRED):
        return _time(code, certificate, now, clock_offset)
    if code in _WRONG_HOST:
        hosts = ", ".join(certificate.hosts) if certificate is not None else ""
        return f"it is for {hosts or 'other hosts'}, not for {host}"
    if code == _REVOKED:
        return "it was revoked, or one that it is chained to (tls.crl_file)"
    if code == _NO_LIST:
        return "tls.crl_file has no list of its issuer; see tls.crl_check"
    if code in _OLD_LIST:
        return "its issuer's list in tls.crl_file is not valid now: fetch a new one"
    return said


def _time(
    code: int, certificate: Certificate | None, now: float, clock_offset: float | None
) -> str:
    """Return the reason for a certificate that is expired or not valid yet."""
    clock = datetime.fromtimestamp(now, UTC)
    what = "it has expired" if code == _EXPIRED else "it is not valid yet"
    if certificate is not None and certificate.not_before <= clock <= certificate.not_after:
        what = what.replace("it ", "a certificate that it is chained to ", 1)
    text = f"{what}; this host's clock says {clock:%Y-%m-%dT%H:%MZ}, is that right?"
    if clock_offset is not None and abs(clock_offset) > 60:
        side = "ahead of" if clock_offset > 0 else "behind"
        hours = abs(clock_offset) / 3600
        text += f" (it was {hours:.1f} h {side} the server's when that last answered)"
    return text
