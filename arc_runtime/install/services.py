"""Starting and stopping what was installed: by systemd, or not at all where there is none."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from arc_runtime.install.plan import InstallError, Say

_STOP_SECONDS: Final = 24 * 3600.0
"""A drain may be as long as its configuration says; systemd bounds it."""
_QUICK_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.2


class Services(Protocol):
    """What an installation asks of whoever runs the units."""

    def reload(self) -> None:
        """Read the unit files again."""
        ...

    def is_active(self, unit: str) -> bool:
        """Whether a unit runs, or is about to."""
        ...

    def restart(self, unit: str, within_seconds: float) -> bool:
        """Stop a unit as it likes to be stopped, and start it; whether it was ready in time."""
        ...

    def stop(self, unit: str) -> None:
        """Stop it, and do not start it again."""
        ...


class _State(NamedTuple):
    """What systemd says of a unit."""

    active: str
    invocation: str
    """Another one with every start."""
    restarts: int
    """How often systemd has started it again by itself since it was asked to."""


class Systemctl:
    """The running system's systemd."""

    def reload(self) -> None:
        """See Services."""
        run_command(["systemctl", "daemon-reload"])

    def is_active(self, unit: str) -> bool:
        """See Services. A unit that waits to be restarted counts."""
        return self._state(unit).active in ("active", "activating", "reloading")

    def restart(self, unit: str, within_seconds: float) -> bool:
        """See Services. One job of systemd's: it goes on should we die in the middle.

        The time that the old process takes to stop does not count.
        """
        before = self._state(unit).invocation
        _said(["systemctl", "reset-failed", unit])
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
        """See Services."""
        run_command(["systemctl", "stop", unit], seconds=_STOP_SECONDS)

    def _state(self, unit: str) -> _State:
        """How a unit is now."""
        names = "ActiveState,InvocationID,NRestarts"
        lines = _said(["systemctl", "show", f"--property={names}", unit]).splitlines()
        found = {key: value for key, _, value in (line.partition("=") for line in lines)}
        restarts = found.get("NRestarts", "")
        return _State(
            active=found.get("ActiveState", ""),
            invocation=found.get("InvocationID", ""),
            restarts=int(restarts) if restarts.isdecimal() else 0,
        )


class NoServices:
    """A scratch root, or a host without systemd: units are put there, and nothing runs."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def reload(self) -> None:
        """Nobody reads them."""

    def is_active(self, unit: str) -> bool:  # noqa: ARG002
        """Nothing runs."""
        return False

    def restart(self, unit: str, within_seconds: float) -> bool:  # noqa: ARG002
        """It starts when the system does."""
        self._say(f"not started: systemd does not run here; {unit} starts with the system")
        return True

    def stop(self, unit: str) -> None:
        """Nothing runs."""


def services_of(root: Path, say: Say) -> Services:
    """Who runs the units of a root."""
    is_running = root == Path("/") and Path("/run/systemd/system").is_dir()
    return Systemctl() if is_running else NoServices(say)


def systemd_version() -> int:
    """Of the systemd that is installed, 0 when there is none."""
    try:
        words = _said(["systemctl", "--version"]).split()
    except OSError:
        return 0
    return int(words[1]) if len(words) > 1 and words[1].isdecimal() else 0


def _said(argv: Sequence[str]) -> str:
    """What a quick command prints, however it ends. Raises OSError when it cannot be run."""
    done = subprocess.run(  # noqa: S603
        argv, text=True, capture_output=True, timeout=_QUICK_SECONDS, check=False
    )
    return done.stdout


def run_command(argv: Sequence[str], seconds: float = 600.0) -> None:
    """Run a command to its end. Raises InstallError with what it said."""
    try:
        done = subprocess.run(  # noqa: S603
            argv, text=True, capture_output=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{argv[0]}: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise InstallError(f"{' '.join(argv)} ended with {done.returncode}: {said}")
