"""Dates in the headers of HTTP (RFC 9110, 5.6.7), as servers and proxies write them."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def http_date(text: str) -> datetime | None:
    """Return the instant of a date, which is in UTC unless it names a zone; None if it is none."""
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):  # a year or a zone of 20 digits overflows
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
