"""The agent: runs commands on a host that nobody can reach. A handler needs only what is here."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"

from arc_agent.handlers.context import CommandFailed, Context
from arc_agent.handlers.registry import handler

__all__ = ["CommandFailed", "Context", "__version__", "handler"]
