"""The search for handlers: the agent's own, modules, entry points, and YAML."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from arc_agent.config.declared_handlers import NO_LIMITS
from arc_agent.config.handler_sections import HandlersSection
from arc_agent.handlers import builtin
from arc_agent.handlers.declared import isolation
from arc_agent.handlers.declared.http import http_handler
from arc_agent.handlers.declared.programs import exec_handler
from arc_agent.handlers.declared.sql import sql_handler
from arc_agent.handlers.lifespans import in_order, lifespans_of
from arc_agent.handlers.registry import HandlerError, Provisions, Registry, handlers_of
from arc_runtime.startup.late_module import late_module
from arc_runtime.terminal.suggestions import suggestion

if TYPE_CHECKING:
    from importlib import metadata
else:
    metadata = late_module("importlib.metadata")  # not needed without entry points

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_IMPORTING: Final = re.compile(rf"[ /]importlib\b|^{re.escape(__file__)}$")
"""The files of frames that every import has."""

GROUP: Final = "arc_agent.handlers"
"""The entry point group of packages with handlers."""


class ImportFailed(HandlerError):
    """A module cannot be imported. `report` is the traceback, from the module's own code on."""

    def __init__(self, origin: str, error: BaseException) -> None:
        super().__init__(f"{origin} cannot be imported")
        own = error.__traceback__
        while own is not None and _IMPORTING.search(own.tb_frame.f_code.co_filename):
            own = own.tb_next
        self.report = "".join(traceback.format_exception(type(error), error, own))


def load_handlers(settings: HandlersSection) -> Registry:
    """Return all handlers that the configuration and the installed packages name.

    A broken entry point is logged and left out, unless `strict`. Raises HandlerError (ImportFailed
    with the traceback) for other handlers that cannot be used.
    """
    found = [_Source(builtin, builtin.__name__)]
    for directory in reversed(settings.path):
        entry = str(directory.expanduser().absolute())
        if entry not in sys.path:
            sys.path.insert(0, entry)
    found += [_module(name) for name in settings.modules]
    is_whole = True
    for source in _entry_points(strict=settings.strict) if settings.entry_points else ():
        is_whole = is_whole and source is not None
        found += [source] if source is not None else []
    lifespans = in_order(each for part in found for each in lifespans_of(part.found, part.origin))
    provisions = Provisions(each.provides for each in lifespans if each.provides is not None)
    registry = Registry(lifespans, provisions)
    for part in found:
        is_whole = _add(registry, part, provisions, strict=settings.strict) and is_whole
    add_declared(registry, settings)
    configure(registry, settings, is_whole=is_whole)
    return registry


def configure(registry: Registry, settings: HandlersSection, *, is_whole: bool = True) -> None:
    """Apply the host's settings to handlers. Raises HandlerError for an unknown name.

    If the registry is not whole, an unknown name is logged only: its handler may be left out.
    """
    for name in registry.configure(settings.settings):
        if is_whole:
            raise HandlerError(f"handlers.settings.{name}: there is no handler of that name")
        log.warning("handlers.settings_unused", handler=name)


def add_declared(registry: Registry, settings: HandlersSection) -> None:
    """Add the handlers that YAML declares, without a connection. Raises HandlerError."""
    for name, section in settings.exec.items():
        registry.add(exec_handler(name, section))
    for name, section in settings.http.items():
        registry.add(http_handler(name, section))
    for name, section in settings.sql.items():
        registry.add(sql_handler(name, section))


def is_declared(name: str, settings: HandlersSection) -> bool:
    """Return True if YAML declares a command of this name."""
    return name in settings.exec or name in settings.http or name in settings.sql


def check_host(settings: HandlersSection) -> None:
    """Check that this host can run the handlers that YAML declares. Raises HandlerError.

    For the start of an agent; `check-config` may run on another host.
    """
    if any(each.user is not None or each.limits != NO_LIMITS for each in settings.exec.values()):
        isolation.check(settings.exec)


class _Source(NamedTuple):
    """A place with handlers, and its name for messages."""

    found: Any
    origin: str
    entry_point: str | None = None


def _module(name: str) -> _Source:
    """Import a module by its name or path. Raises HandlerError, ImportFailed."""
    origin = f"the handler module {name}"
    is_file = name.endswith(".py")
    if is_file and not (path := _absolute(name)).exists():
        likely = suggestion(path.name, [each.name for each in path.parent.glob("*.py")])
        raise HandlerError(f"{origin}: there is no file {path}{likely}")
    try:
        module = _from_file(_absolute(name)) if is_file else importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may even exit while it is imported
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            place = " or in handlers.path; a file is named by its path, with .py"
            raise HandlerError(f"{origin} is not installed{place}") from None
        raise ImportFailed(origin, error) from None
    return _Source(module, name)


def _add(registry: Registry, part: _Source, provisions: Provisions, *, strict: bool) -> bool:
    """Add the handlers of one place; return False if they are left out. Raises HandlerError."""
    try:
        handlers = list(handlers_of(part.found, part.origin, provisions))
    except HandlerError as error:
        if strict or part.entry_point is None:
            raise
        log.error("handlers.left_out", entry_point=part.entry_point, reason=str(error))
        return False
    if not handlers and part.entry_point is None:
        raise HandlerError(
            f"the handler module {part.origin} has no handlers: is @handler missing?"
        )
    for each in handlers:
        registry.add(each)
    return True


def _absolute(name: str) -> Path:
    return Path(name).expanduser().absolute()


def _from_file(path: Path) -> ModuleType:
    """Import a file by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _entry_points(*, strict: bool) -> Iterator[_Source | None]:
    """Yield the entry points of installed packages; None for one that cannot be imported.

    Raises ImportFailed for it if `strict`.
    """
    for point in metadata.entry_points(group=GROUP):
        origin = f"the entry point {point.name} ({point.value})"
        try:
            found = point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module may even exit while it is imported
            if strict:
                raise ImportFailed(origin, error) from None
            log.error(
                "handlers.left_out", entry_point=point.name, value=point.value, exc_info=error
            )
            yield None
        else:
            yield _Source(found, origin, point.name)
