"""The descriptions of handlers for the server: names, texts, and JSON Schemas within bounds."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, Literal

import msgspec
import structlog

from arc_agent.config.handler_sections import HandlersSection
from arc_agent.handlers import shapes
from arc_agent.handlers.registry import Handler
from arc_protocol.messages.agents import HandlerInfo

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_MAX_HANDLERS: Final = 1_000
_MAX_DESCRIPTION_CHARS: Final = 1_000
_TOGETHER: Final = 32
"""All schemas together may take so many times the limit of one; the first by name are sent."""


def advertised(handlers: Iterable[Handler], settings: HandlersSection) -> list[HandlerInfo]:
    """Return the descriptions for a registration. A schema that is too large is left out."""
    left = _TOGETHER * settings.max_schema_bytes
    infos: list[HandlerInfo] = []
    for handler in islice(handlers, _MAX_HANDLERS):
        limit = min(left, settings.max_schema_bytes)
        params, params_bytes = _params_schema(handler, limit)
        left -= params_bytes
        limit = min(left, settings.max_schema_bytes)
        result, result_bytes = _schema(handler, handler.result_type, "serialization", limit)
        left -= result_bytes
        infos.append(info(handler, params, result))
    return infos


def info(
    handler: Handler, params: dict[str, Any] | None, result: dict[str, Any] | None
) -> HandlerInfo:
    """Return one description with schemas, or without them if they are nested too deeply."""
    described = HandlerInfo(
        name=handler.name,
        description=(handler.description or "")[:_MAX_DESCRIPTION_CHARS] or None,
        timeout_seconds=handler.timeout_seconds,
        idempotent=handler.idempotent,
    )
    try:
        return msgspec.structs.replace(described, params_schema=params, result_schema=result)
    except ValueError as error:
        _log_left_out(handler, str(error))
        return described


def _schema(
    handler: Handler, kind: Any, mode: Literal["validation", "serialization"], limit: int
) -> tuple[dict[str, Any] | None, int]:
    """Return a type's schema within a limit, and its bytes as JSON."""
    if limit <= 0:
        return None, 0
    try:
        made = shapes.schema(kind, mode)
    except Exception as error:  # models make their own, and may fail in any way
        _log_left_out(handler, f"{type(error).__name__}: {error}")
        return None, 0
    return _fitting(handler, made, limit)


def _params_schema(handler: Handler, limit: int) -> tuple[dict[str, Any] | None, int]:
    """Return the schema of the params: the declared one, or that of their type."""
    if handler.params_schema is None:
        return _schema(handler, handler.params_type, "validation", limit)
    return _fitting(handler, handler.params_schema, limit) if limit > 0 else (None, 0)


def _fitting(
    handler: Handler, made: dict[str, Any] | None, limit: int
) -> tuple[dict[str, Any] | None, int]:
    """Return a schema if it is within the limit, and its bytes as JSON."""
    try:
        size = len(msgspec.json.encode(made)) if made is not None else 0
    except Exception as error:  # a model's schema may hold any object
        _log_left_out(handler, f"{type(error).__name__}: {error}")
        return None, 0
    if size > limit:
        _log_left_out(handler, f"it has {size} bytes, {limit} are allowed")
        return None, 0
    return made, size


def _log_left_out(handler: Handler, reason: str) -> None:
    """Log that a schema is not sent to the server."""
    log.warning("handlers.schema_left_out", handler=handler.name, reason=reason)
