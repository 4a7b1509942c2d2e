"""The agent: runs commands on a host that nobody can reach. A handler needs only what is here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from arc_agent.handlers.context import CommandFailed, Context, Retry
    from arc_agent.handlers.lifespans import lifespan
    from arc_agent.handlers.registry import handler

__version__: Final = "0.1.0"
__all__ = ["CommandFailed", "Context", "Retry", "__version__", "handler", "lifespan"]

_HOMES: Final = {
    "CommandFailed": "arc_agent.handlers.context",
    "Context": "arc_agent.handlers.context",
    "Retry": "arc_agent.handlers.context",
    "handler": "arc_agent.handlers.registry",
    "lifespan": "arc_agent.handlers.lifespans",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: the command line starts with little."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
