"""Params from bytes to what a handler asks for."""

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
    """What the handler gets for these bytes.

    Without a type: JSON from UTF-8, else from Latin-1 (a 1.x sender encodes so), else the bytes.
    `bytes` and `str` get the bytes and the text; all other types are checked. Raises CommandFailed
    INVALID_PARAMS naming the field, and what a model's own code raises besides.
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
    """The JSON value in bytes, _NOT_JSON when there is none."""
    decoders: tuple[Callable[[bytes], str], ...] = (_utf8, _latin1)
    for decode in decoders:
        try:
            return json.loads(decode(data))
        except (ValueError, RecursionError):
            continue
    return _NOT_JSON


def _utf8(data: bytes) -> str:
    """Strictly. Raises UnicodeDecodeError, a ValueError."""
    return data.decode("utf-8")


def _latin1(data: bytes) -> str:
    """Always works."""
    return data.decode("latin-1")


def _text(data: bytes) -> str:
    """Bytes as text, in the same order of trial."""
    try:
        return _utf8(data)
    except ValueError:
        return _latin1(data)
