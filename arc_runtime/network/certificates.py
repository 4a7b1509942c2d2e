"""The certificate in a log line: subject, issuer, hosts and dates, read from its DER (RFC 5280, 4).

Python gives the certificate of a handshake only when it was accepted, and an operator wants to see
the refused one. Nothing is decided by what is read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final

import msgspec

_SEQUENCE: Final = 0x30
_UTC_TIME: Final = 0x17
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_DNS_NAME: Final = 0x82
_ADDRESS: Final = 0x87
_SAN: Final = bytes((0x55, 0x1D, 0x11))
_NAMES: Final = {bytes((0x55, 0x04, 0x03)): "CN", bytes((0x55, 0x04, 0x0A)): "O"}
_MAX_SHOWN: Final = 10


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a certificate that an operator needs."""

    subject: str
    issuer: str
    not_before: datetime
    not_after: datetime
    hosts: tuple[str, ...]
    """The names and addresses that it is valid for."""

    def __str__(self) -> str:
        """Return the facts in a line for an operator."""
        hosts = ", ".join(self.hosts[:_MAX_SHOWN]) or "no host"
        return (
            f"subject {self.subject}, issuer {self.issuer}, for {hosts}, valid from"
            f" {self.not_before:%Y-%m-%dT%H:%MZ} to {self.not_after:%Y-%m-%dT%H:%MZ}"
        )


def read_certificate(der: bytes) -> Certificate:
    """Read a certificate. Raises ValueError when the data is none."""
    try:
        return _read(der)
    except (IndexError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError("not a certificate") from error


def _read(der: bytes) -> Certificate:
    """Read a certificate; raise any of several exceptions when the data is none."""
    signed = next(_values(_value(der, _SEQUENCE)))[1]
    fields = list(_values(signed))
    if fields[0][0] == _VERSION:
        fields = fields[1:]
    issuer, validity, subject = fields[2][1], fields[3][1], fields[4][1]
    begin, end = _values(validity)
    extensions = next((value for tag, value in fields[6:] if tag == _EXTENSIONS), b"")
    return Certificate(
        subject=_name(subject),
        issuer=_name(issuer),
        not_before=_time(*begin),
        not_after=_time(*end),
        hosts=tuple(_hosts(extensions)),
    )


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and contents of each element in `data`."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            octets = length & 0x7F
            length = int.from_bytes(data[at : at + octets], "big")
            at += octets
        if at + length > len(data):
            raise ValueError("not a certificate: it is cut off")
        yield tag, data[at : at + length]
        at += length


def _value(data: bytes, tag: int) -> bytes:
    """Return the contents of the one element in `data`. Raises ValueError for another tag."""
    found, value = next(_values(data))
    if found != tag:
        raise ValueError("not a certificate")
    return value


def _name(data: bytes) -> str:
    """Return common name and organization of a distinguished name: `CN=arc.corp, O=Corp`."""
    parts: list[str] = []
    for _, attributes in _values(data):
        for _, attribute in _values(attributes):
            (_, kind), (_, text) = list(_values(attribute))[:2]
            if kind in _NAMES:
                parts.append(f"{_NAMES[kind]}={_clean(text)}")
    return ", ".join(parts) or "(no name)"


def _time(tag: int, data: bytes) -> datetime:
    """Return the instant of a UTCTime or GeneralizedTime, both in UTC (RFC 5280, 4.1.2.5)."""
    text = data.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _hosts(extensions: bytes) -> Iterator[str]:
    """Yield the alternative names in a certificate's extensions."""
    for _, listed in _values(extensions):
        for _, extension in _values(listed):
            fields = list(_values(extension))
            if fields[0][1] != _SAN:
                continue
            for tag, value in _values(_value(fields[-1][1], _SEQUENCE)):
                if tag == _DNS_NAME:
                    yield _clean(value)
                elif tag == _ADDRESS:
                    yield str(ip_address(value))


def _clean(text: bytes) -> str:
    """Return text of another party without characters that could forge a log line."""
    shown = text.decode("utf-8", "replace")[:100]
    return "".join(char if char.isprintable() else "?" for char in shown)
