"""Importing what is heavy without the parts of it that nobody here uses: for entry points alone.

Memory that a process would hold for ever, and a third of the time that a program takes to start.
Too late when the module has been imported before.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module

from arc_runtime.startup.late_trust import contexts_made_late


def import_structlog() -> None:
    """Import structlog without rich, which it takes for tracebacks that nobody shows here: 4 MB."""
    with _without("rich"):
        import_module("structlog")


def import_aiohttp() -> None:
    """Import aiohttp without the certificates of the system, which it reads on import: 2 MB."""
    with contexts_made_late():
        import_module("aiohttp")


@contextmanager
def _without(module: str) -> Generator[None]:
    """Let `import module` fail meanwhile, as if it were not installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
