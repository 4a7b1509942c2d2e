"""Bodies as rows of `params` and `responses`: what `form` says of `data`, and the checksum.

All columns are integers and blobs, so that a damaged row can always be read, and is then told by
its checksum.
"""

from __future__ import annotations

from typing import Any, Final
from zlib import crc32

import msgspec

from arc_server.ports.records import (
    AwaitedBlob,
    DamagedBody,
    ReadResponse,
    StoredBlob,
    StoredBody,
    StoredError,
    StoredInline,
    StoredParams,
    StoredResponse,
    StoredSuccess,
)

INLINE: Final = 1
"""`data` is the body, `size` its length."""
BLOB: Final = 2
"""`data` is the path of a blob of `size` bytes."""
AWAITED: Final = 3
"""`data` is the path that the sender is to upload to; `size` is what it announced, or NULL."""
ERROR: Final = 4
"""`data` is (code, message, details) in MessagePack, `size` its length."""

WIDTH: Final = 4
"""How many columns a body has."""

UNREADABLE: Final = DamagedBody(reason="the page that holds it is damaged")
"""Read instead of a body that SQLite cannot read."""

_ERROR_PARTS: Final = msgspec.msgpack.Decoder(tuple[str, str, str | None])


BodyRow = tuple[int, bytearray, int | None, int]
"""form, data, size and checksum of a row. The sqlite3 module binds a bytearray as it is; for bytes,
bool and None it looks for an adapter, each time, and that costs as much as a short query."""


def checksum(form: int, data: bytes | bytearray, size: int | None) -> int:
    """A CRC-32 over a row: against damage, not against forgery."""
    start = form if size is None else form + 8 * (size + 1)
    return crc32(data, start & 0xFFFF_FFFF)


def _row(form: int, data: bytes, size: int | None) -> BodyRow:
    return form, bytearray(data), size, checksum(form, data, size)


def of_params(params: StoredInline | StoredBlob | AwaitedBlob) -> BodyRow:
    """Params as a row."""
    if isinstance(params, StoredInline):
        return _row(INLINE, params.data, len(params.data))
    form = BLOB if isinstance(params, StoredBlob) else AWAITED
    return _row(form, params.path.encode(), params.size)


def to_signature(stored: Any) -> str | None:
    """A column as a signature. Damage shows where it is verified."""
    return stored.decode("ascii", "replace") if isinstance(stored, bytes) else None


def of_response(response: StoredResponse) -> BodyRow:
    """A response as a row."""
    if isinstance(response, StoredSuccess):
        return of_params(response.body)
    parts = msgspec.msgpack.encode((response.code, response.message, response.details))
    return _row(ERROR, parts, len(parts))


def _damage(form: Any, data: Any, size: Any, stored: Any) -> str | None:
    if form is None:
        return "no body is stored"
    if not (isinstance(form, int) and isinstance(data, bytes) and isinstance(stored, int)):
        return "the stored body has another type"
    if checksum(form, data, size) != stored:
        return "the checksum of the stored body is wrong"
    return None


def to_params(form: Any, data: Any, size: Any, stored: Any) -> StoredParams:
    """A row as params; DamagedBody when the row is not there, its checksum or its form is wrong."""
    if reason := _damage(form, data, size, stored):
        return DamagedBody(reason=reason)
    try:
        if form == AWAITED:
            return AwaitedBlob(path=data.decode(), size=size)
        return _body(form, data, size)
    except ValueError:
        return DamagedBody(reason=f"the stored params have not their form {form}")


def to_response(form: Any, data: Any, size: Any, stored: Any) -> ReadResponse | None:
    """A row as a response; None when there is none (all columns NULL)."""
    if form is None:
        return None
    if reason := _damage(form, data, size, stored):
        return DamagedBody(reason=reason)
    try:
        if form == ERROR:
            code, message, details = _ERROR_PARTS.decode(data)
            return StoredError(code=code, message=message, details=details)
        return StoredSuccess(body=_body(form, data, size))
    except ValueError:
        return DamagedBody(reason=f"the stored response has not its form {form}")


def _body(form: int, data: bytes, size: int | None) -> StoredBody:
    """Raises ValueError when the form is another, or these are not its columns."""
    if form == INLINE and size == len(data):
        return StoredInline(data=data)
    if form == BLOB and size is not None:
        return StoredBlob(path=data.decode(), size=size)
    raise ValueError(form)
