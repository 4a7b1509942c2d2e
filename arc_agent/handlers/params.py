"""The params of a run: from bytes to the type that the handler wants."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, cast

from arc_agent.handlers import shapes
from arc_agent.handlers.context import CommandFailed
from arc_agent.handlers.registry import UNTYPED, Handler

INVALID_PARAMS: Final = "INVALID_PARAMS"
_NOT_JSON: Final = object()


def convert_params(data: bytes, handler: Handler) -> Any:
    """Return the params of a handler for the bytes that came.

    For a handler without a type: JSON in UTF-8, else JSON in Latin-1 (as 1.x senders encode), else
    the bytes. For `bytes` and `str`: the bytes or the text. Other types are checked.

    Raises CommandFailed INVALID_PARAMS, which names the field, and exceptions of a model's code.
    """
    if handler.read_params is not None:
        return handler.read_params(data)
    kind = handler.params_type
    if kind is bytes:
        return data
    if kind is UNTYPED:
        value = _parsed(data)
        return data if value is _NOT_JSON else value
    value: Any = _parsed(data) if data else cast("Any", {})
    if kind is str:
        return value if isinstance(value, str) else _text(data)
    if value is _NOT_JSON:
        raise CommandFailed(INVALID_PARAMS, "params: not JSON")
    try:
        return shapes.read(value, kind)
    except shapes.Misfit as error:
        raise CommandFailed(INVALID_PARAMS, error.under("params")) from None


def _parsed(data: bytes) -> Any:
    """Return the JSON value in bytes; _NOT_JSON when there is none."""
    decoders: tuple[Callable[[bytes], str], ...] = (_utf8, _latin1)
    for decode in decoders:
        try:
            return json.loads(decode(data))
        except (ValueError, RecursionError):
            continue
    return _NOT_JSON


def _utf8(data: bytes) -> str:
    """Decode UTF-8, strictly. Raises UnicodeDecodeError, a ValueError."""
    return data.decode("utf-8")


def _latin1(data: bytes) -> str:
    """Decode Latin-1, which never fails."""
    return data.decode("latin-1")


def _text(data: bytes) -> str:
    """Return bytes as text: UTF-8, else Latin-1."""
    try:
        return _utf8(data)
    except ValueError:
        return _latin1(data)
