"""Bodies as rows of `params` and `responses`: `form` says what `data` is, a checksum guards both.

All columns are integers and blobs, so that a damaged row can always be read; its checksum shows the
damage then.
"""

from __future__ import annotations

from typing import Any, Final
from zlib import crc32

import msgspec

from arc_protocol import lifecycle
from arc_server.ports.records import (
    AwaitedBlob,
    CommandWithResponse,
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
from arc_server.store.engine.rows import Row, StoredCommand, command_of

INLINE: Final = 1
"""`data` is the body, `size` its length."""
BLOB: Final = 2
"""`data` is the path of a blob of `size` bytes."""
AWAITED: Final = 3
"""`data` is the path that the sender is to upload to; `size` is what it announced, or NULL."""
ERROR: Final = 4
"""`data` is (code, message, details) in MessagePack, `size` its length."""
REMOVED: Final = 5
"""The body was kept for its time; `data` is empty."""

GONE: Final = DamagedBody(reason="it was removed after its time", is_removed=True)
"""Read instead of a body that was removed."""
UNREADABLE: Final = DamagedBody(reason="the page that holds it is damaged")
"""Read instead of a body that SQLite cannot read."""
NO_BODY: Final = (None, None, None, None)
"""The columns of a body that is not there."""

_ERROR_PARTS: Final = msgspec.msgpack.Decoder(tuple[str, str, str | None])


BodyRow = tuple[int, bytearray, int | None, int]
"""form, data, size and checksum of a row. The sqlite3 module binds a bytearray as it is; for bytes,
bool and None it looks for an adapter, each time, and that costs as much as a short query."""


def checksum(form: int, data: bytes | bytearray, size: int | None) -> int:
    """Return a CRC-32 over a row: against damage, not against forgery."""
    start = form if size is None else form + 8 * (size + 1)
    return crc32(data, start & 0xFFFF_FFFF)


def of_params(params: StoredInline | StoredBlob | AwaitedBlob) -> BodyRow:
    """Return params as a row."""
    if isinstance(params, StoredInline):
        return _row(INLINE, params.data, len(params.data))
    form = BLOB if isinstance(params, StoredBlob) else AWAITED
    return _row(form, params.path.encode(), params.size)


def of_response(response: StoredResponse) -> BodyRow:
    """Return a response as a row."""
    if isinstance(response, StoredSuccess):
        return of_params(response.body)
    parts = msgspec.msgpack.encode((response.code, response.message, response.details))
    return _row(ERROR, parts, len(parts))


def removed() -> BodyRow:
    """Return the row of a body that was removed."""
    return _row(REMOVED, b"", 0)


def command_with_params(row: Row) -> StoredCommand:
    """Read a row of the query `command_with_params`."""
    *columns, form, data, size, stored, signature = row
    return StoredCommand(
        columns[0],
        command_of(columns),
        to_params(form, data, size, stored),
        to_signature(signature),
    )


def to_signature(stored: object) -> str | None:
    """Return a signature as it is stored. Damage shows where it is verified."""
    return stored.decode("ascii", "replace") if isinstance(stored, bytes) else None


def command_with_response(row: Row) -> CommandWithResponse:
    """Read a row of the query `command_with_response`; the response counts once it has ended."""
    *columns, form, data, size, stored = row
    command = command_of(columns)
    if command.state not in lifecycle.TERMINAL:
        return CommandWithResponse(command=command)
    return CommandWithResponse(command=command, response=to_response(form, data, size, stored))


def to_params(form: Any, data: Any, size: Any, stored: Any) -> StoredParams:
    """Read params; DamagedBody when the row is not there, its checksum or its form is wrong."""
    if reason := _damage(form, data, size, stored):
        return DamagedBody(reason=reason)
    if form == REMOVED:
        return GONE
    try:
        if form == AWAITED:
            return AwaitedBlob(path=data.decode(), size=size)
        return _body(form, data, size)
    except ValueError:
        return DamagedBody(reason=f"the stored params have not their form {form}")


def to_response(form: Any, data: Any, size: Any, stored: Any) -> ReadResponse | None:
    """Read a response; None when there is none (all columns NULL), DamagedBody as `to_params`."""
    if form is None:
        return None
    if reason := _damage(form, data, size, stored):
        return DamagedBody(reason=reason)
    if form == REMOVED:
        return GONE
    try:
        if form == ERROR:
            code, message, details = _ERROR_PARTS.decode(data)
            return StoredError(code=code, message=message, details=details)
        return StoredSuccess(body=_body(form, data, size))
    except ValueError:
        return DamagedBody(reason=f"the stored response has not its form {form}")


def _row(form: int, data: bytes, size: int | None) -> BodyRow:
    return form, bytearray(data), size, checksum(form, data, size)


def _damage(form: Any, data: Any, size: Any, stored: Any) -> str | None:
    if form is None:
        return "no body is stored"
    if not (isinstance(form, int) and isinstance(data, bytes) and isinstance(stored, int)):
        return "the stored body has another type"
    if checksum(form, data, size) != stored:
        return "the checksum of the stored body is wrong"
    return None


def _body(form: int, data: bytes, size: int | None) -> StoredBody:
    if form == INLINE and size == len(data):
        return StoredInline(data=data)
    if form == BLOB and size is not None:
        return StoredBlob(path=data.decode(), size=size)
    raise ValueError(form)
