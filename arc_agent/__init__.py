"""The agent runs commands on its host. This module has all that the author of a handler needs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from arc_agent.version import __version__

if TYPE_CHECKING:
    from arc_agent.handlers.context import CommandFailed, Context, Retry
    from arc_agent.handlers.lifespans import lifespan
    from arc_agent.handlers.registry import handler

__all__ = ["CommandFailed", "Context", "Retry", "__version__", "handler", "lifespan"]

_HOMES: Final = {
    "CommandFailed": "arc_agent.handlers.context",
    "Context": "arc_agent.handlers.context",
    "Retry": "arc_agent.handlers.context",
    "handler": "arc_agent.handlers.registry",
    "lifespan": "arc_agent.handlers.lifespans",
}


def __getattr__(name: str) -> Any:
    """Import a name at its first use, so that the command line starts fast."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
