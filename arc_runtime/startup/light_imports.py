"""Light imports load a heavy module without the parts that ARC does not use.

They save memory that a process would hold for ever, and a third of the time that a program takes to
start. For entry points: they have no effect once the module is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module

from arc_runtime.startup.late_module import late_module
from arc_runtime.startup.late_trust import contexts_made_late


def import_structlog() -> None:
    """Import structlog without rich, 4 MB that it needs for tracebacks which ARC does not show."""
    with _without("rich"):
        import_module("structlog")


def import_aiohttp() -> None:
    """Import aiohttp without the system's certificates, 2 MB that it reads when imported."""
    with contexts_made_late():
        import_module("aiohttp")


def import_small_aiohttp() -> None:
    """Import aiohttp without certificates, and also without 1.3 MB that a client seldom needs.

    The C++ form of frozenlist loads libstdc++, and idna has tables for host names beyond ASCII:
    yarl loads them with the first of these names.
    """
    with _without("frozenlist._frozenlist"), _late("idna"):
        import_aiohttp()


@contextmanager
def _late(module: str) -> Generator[None]:
    """Let `import module` give a late module for as long as the context lasts."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = late_module(module)
    try:
        yield
    finally:
        del sys.modules[module]


@contextmanager
def _without(module: str) -> Generator[None]:
    """Let `import module` fail for as long as the context lasts, as if it were not installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
