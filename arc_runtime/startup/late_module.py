"""A late module stands for a heavy third-party module and loads it when a name of it is first used.

    if TYPE_CHECKING:
        from nacl import bindings
    else:
        bindings = late_module("nacl.bindings")

A type checker sees the real module; a process that never signs never pays for it.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class _LateModule(ModuleType):
    """Safe from any thread: the import system's own lock lets one of them load the module."""

    def __getattr__(self, name: str) -> Any:
        """Return the real module's attribute, and keep it for the next use."""
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


def late_module(name: str) -> ModuleType:
    """Return a stand-in for the module `name`; importing it is left to the first use."""
    return _LateModule(name)
