"""An upgrade switches to another version, and back if that one does not become ready.

A service whose old version had contact with its server must have contact with the new one too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from arc_runtime.install.host import Host, InstallError
from arc_runtime.install.program import InstalledProgram
from arc_runtime.install.services import Services

HasContact: TypeAlias = Callable[[str], bool]
"""Returns True if the process of a unit has contact with its server."""
_LOOK_SECONDS: Final = 0.2


def upgrade(
    program: InstalledProgram,
    host: Host,
    services: Services,
    *,
    source: str,
    units: Sequence[str],
    check: Callable[[Path], None],
    has_contact: HasContact,
    within_seconds: float,
) -> Path:
    """Build a version from `source`, check it, switch to it and restart the units that run.

    `check` tries the new version on the configuration and raises InstallError. If a unit is not
    ready in time, or loses the contact that it had, the old version comes back. Raises
    InstallError: then the old version is the current one, and runs again where it ran.
    """
    old = _current(program)
    new = program.build(old, source)
    try:
        check(new)
    except BaseException:
        program.forget(new)
        raise
    try:
        switch_to(
            program,
            host,
            services,
            new,
            units=units,
            has_contact=has_contact,
            within_seconds=within_seconds,
        )
    except InstallError:
        program.forget(new)
        raise
    program.prune()
    return new


def switch_to(
    program: InstalledProgram,
    host: Host,
    services: Services,
    version: Path,
    *,
    units: Sequence[str],
    has_contact: HasContact,
    within_seconds: float,
) -> None:
    """Switch to a version and restart the units that run, or go back to the current one.

    A unit drains as at any stop. Raises InstallError.
    """
    old = _current(program)
    running = [unit for unit in units if services.is_active(unit)]
    had_contact = {unit: has_contact(unit) for unit in running}
    before = program.previous()
    program.switch(version)
    for unit in running:
        host.print(f"restarting {unit}, which first finishes what it runs")
        fault = ""
        if not services.restart(unit, within_seconds):
            fault = "was not ready"
        elif had_contact[unit] and not _gets_contact(unit, has_contact, within_seconds):
            fault = "had no contact with the server"
        if fault:
            host.print(f"{unit} {fault} in time with version {version.name}: going back")
            _go_back(program, services, old, before, running, within_seconds)
            raise InstallError(
                f"version {version.name} {fault} within {within_seconds:g} s;"
                f" version {old.name} is back. See: journalctl -u {unit}"
            )
    for unit in units:
        if unit not in running:
            host.print(f"{unit} was not running, and was not started")


def _gets_contact(unit: str, has_contact: HasContact, within_seconds: float) -> bool:
    """Return True if the process of a unit has contact, or gets it in time."""
    until = time.monotonic() + within_seconds
    while not has_contact(unit):
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _go_back(
    program: InstalledProgram,
    services: Services,
    old: Path,
    before: Path | None,
    units: Sequence[str],
    within_seconds: float,
) -> None:
    """Switch back to the old version. Raises InstallError if that is not ready either."""
    program.switch(old)
    program.set_previous(before)
    silent = [unit for unit in units if not services.restart(unit, within_seconds)]
    if silent:
        raise InstallError(
            f"went back to version {old.name}, and it is not ready either: {', '.join(silent)}"
        )


def _current(program: InstalledProgram) -> Path:
    current = program.current()
    if current is None:
        raise InstallError("nothing is installed here: install it first")
    return current
