"""The codec turns messages into JSON and back, strictly, with errors that name the field."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

from arc_protocol.errors import InvalidCommand
from arc_protocol.messages.base import NO_CONTROLS, VISIBLE

T = TypeVar("T")
_MAX_ECHO: Final = 200
"""The length of a msgspec error that is passed on: it quotes values of any length."""
_MISSING_FIELD: Final = "Object missing required field `"
_ENCODER: Final = msgspec.json.Encoder()
_DECODERS: Final[dict[Any, msgspec.json.Decoder[Any]]] = {}


def encode(message: Any) -> bytes:
    """Return a message as JSON, UTF-8. Datetimes must be in UTC: then they end in `Z`."""
    return _ENCODER.encode(message)


def decode(data: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """Return JSON as a message of `kind` (a struct or a union of structs).

    Raises InvalidCommand, naming the field, for anything that is wrong with the bytes.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    try:
        _refuse_other_than_utf8(data)
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        message, field = split_path(str(error))
        raise InvalidCommand(f"{field or 'body'}: {message}", field=field) from None
    except msgspec.DecodeError as error:
        raise InvalidCommand(f"body: not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise InvalidCommand("body: not valid UTF-8") from None
    except RecursionError:
        raise InvalidCommand("body: nested too deeply") from None


def split_path(text: str) -> tuple[str, str | None]:
    """Split an error of msgspec into the message and the path of the field, `params.size`."""
    message, found, path = text.rpartition(" - at `")
    if not found:
        message, path = text, ""
    field = path.rstrip("`").removeprefix("$").removeprefix(".")
    if message.startswith(_MISSING_FIELD):
        missing = message.removeprefix(_MISSING_FIELD).removesuffix("`")
        return "is required", f"{field}.{missing}" if field else missing
    if message.endswith(f"matching regex {VISIBLE!r}"):
        message = "must not contain control or invisible characters"
    elif message.endswith(f"matching regex {NO_CONTROLS!r}"):
        message = "must not contain control characters"
    if len(message) > _MAX_ECHO:
        message = f"{message[:_MAX_ECHO]}…"
    return message, field or None


def _refuse_other_than_utf8(data: bytes | bytearray | memoryview) -> None:
    """Raise UnicodeDecodeError for other bytes: msgspec checks only the text that it keeps."""
    if isinstance(data, memoryview) or not data.isascii():
        str(data, "utf-8")


def utc(moment: datetime) -> datetime:
    """Return an instant in UTC. Raises InvalidCommand when it lies outside the calendar."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise InvalidCommand("timestamp: outside the years 1 to 9999") from None
