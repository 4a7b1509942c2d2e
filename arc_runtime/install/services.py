"""Services start and stop what was installed, by systemd if it runs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from arc_runtime.install.host import InstallError, Print

_STOP_SECONDS: Final = 24 * 3600.0
"""A drain lasts as long as its configuration allows; systemd bounds it."""
_QUICK_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.2


class Services(Protocol):
    """Services run the units of an installation."""

    def reload(self) -> None:
        """Read the unit files again."""
        ...

    def is_active(self, unit: str) -> bool:
        """Return True if a unit runs, or is about to."""
        ...

    def restart(self, unit: str, within_seconds: float) -> bool:
        """Stop a unit, let it drain, and start it. Return True if it was ready in time."""
        ...

    def stop(self, unit: str) -> None:
        """Stop a unit, and do not start it again."""
        ...


class _State(NamedTuple):
    """The state of a unit, from systemd."""

    active: str
    invocation: str
    """A new one with every start."""
    restarts: int
    """Restarts by systemd itself since the last one that was asked for."""


class Systemctl:
    """The running system's systemd."""

    def reload(self) -> None:
        """Read the unit files again."""
        run_command(["systemctl", "daemon-reload"])

    def is_active(self, unit: str) -> bool:
        """Return True if a unit runs, is about to, or waits to be restarted."""
        return self._state(unit).active in ("active", "activating", "reloading")

    def restart(self, unit: str, within_seconds: float) -> bool:
        """Restart a unit by one job of systemd's, which goes on if this process dies.

        The time that the old process takes to stop does not count.
        """
        before = self._state(unit).invocation
        _output_of(["systemctl", "reset-failed", unit])
        run_command(["systemctl", "restart", "--no-block", unit])
        asked_at = time.monotonic()
        started_at = None
        while True:
            state, now = self._state(unit), time.monotonic()
            if state.invocation == before or state.active == "deactivating":
                is_going_on = state.active in ("deactivating", "active", "reloading")
                if not is_going_on and now - asked_at > within_seconds:
                    return False
            else:
                started_at = started_at or now
                if state.active == "active":
                    return True
                if state.active == "failed" or state.restarts or now - started_at > within_seconds:
                    return False
            time.sleep(_LOOK_SECONDS)

    def stop(self, unit: str) -> None:
        """Stop a unit, and do not start it again."""
        run_command(["systemctl", "stop", unit], seconds=_STOP_SECONDS)

    def _state(self, unit: str) -> _State:
        """Return the present state of a unit."""
        names = "ActiveState,InvocationID,NRestarts"
        lines = _output_of(["systemctl", "show", f"--property={names}", unit]).splitlines()
        found = {key: value for key, _, value in (line.partition("=") for line in lines)}
        restarts = found.get("NRestarts", "")
        return _State(
            active=found.get("ActiveState", ""),
            invocation=found.get("InvocationID", ""),
            restarts=int(restarts) if restarts.isdecimal() else 0,
        )


class NoServices:
    """No services: a scratch root, or a host without systemd, has unit files but runs nothing."""

    def __init__(self, print_line: Print) -> None:
        self._print = print_line

    def reload(self) -> None:
        """Do nothing: the unit files are read when the system starts."""

    def is_active(self, unit: str) -> bool:  # noqa: ARG002
        """Return False: no unit runs."""
        return False

    def restart(self, unit: str, within_seconds: float) -> bool:  # noqa: ARG002
        """Print that the unit starts with the system."""
        self._print(f"not started: systemd does not run here; {unit} starts with the system")
        return True

    def stop(self, unit: str) -> None:
        """Do nothing: no unit runs."""


def services_of(root: Path, print_line: Print) -> Services:
    """Return the services that run the units of a root."""
    is_running = root == Path("/") and Path("/run/systemd/system").is_dir()
    return Systemctl() if is_running else NoServices(print_line)


def systemd_version() -> int:
    """Return the version of the installed systemd; 0 without one."""
    try:
        words = _output_of(["systemctl", "--version"]).split()
    except OSError:
        return 0
    return int(words[1]) if len(words) > 1 and words[1].isdecimal() else 0


def _output_of(argv: Sequence[str]) -> str:
    """Return what a quick command prints, however it ends. Raises OSError."""
    done = subprocess.run(  # noqa: S603
        argv, text=True, capture_output=True, timeout=_QUICK_SECONDS, check=False
    )
    return done.stdout


def run_command(
    argv: Sequence[str], seconds: float = 600.0, *, directory: str | None = None
) -> None:
    """Run a command to its end, here or in a directory. Raises InstallError with its output."""
    try:
        done = subprocess.run(  # noqa: S603
            argv, text=True, capture_output=True, timeout=seconds, check=False, cwd=directory
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{argv[0]}: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise InstallError(f"{' '.join(argv)} ended with {done.returncode}: {said}")
