"""Starting and stopping what was installed: by systemd, or not at all where there is none."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from arc_runtime.installation import InstallError, Say

_STOP_SECONDS: Final = 24 * 3600.0
"""A drain may be as long as its configuration says; systemd bounds it."""
_QUICK_SECONDS: Final = 60.0


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


class Systemctl:
    """The running system's systemd."""

    def reload(self) -> None:
        """See Services."""
        run_command(["systemctl", "daemon-reload"])

    def is_active(self, unit: str) -> bool:
        """See Services. A unit that waits to be restarted counts."""
        done = subprocess.run(  # noqa: S603
            ["systemctl", "show", "--property=ActiveState", "--value", unit],  # noqa: S607
            text=True,
            capture_output=True,
            timeout=_QUICK_SECONDS,
            check=False,
        )
        return done.stdout.strip() in ("active", "activating", "reloading")

    def restart(self, unit: str, within_seconds: float) -> bool:
        """See Services. One job of systemd's: it goes on should we die in the middle."""
        subprocess.run(  # noqa: S603
            ["systemctl", "reset-failed", unit],  # noqa: S607
            capture_output=True,
            timeout=_QUICK_SECONDS,
            check=False,
        )
        try:
            done = subprocess.run(  # noqa: S603
                ["systemctl", "restart", unit],  # noqa: S607
                timeout=within_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def stop(self, unit: str) -> None:
        """See Services."""
        run_command(["systemctl", "stop", unit], seconds=_STOP_SECONDS)


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
        done = subprocess.run(
            ["systemctl", "--version"],  # noqa: S607
            text=True,
            capture_output=True,
            timeout=_QUICK_SECONDS,
            check=False,
        )
    except OSError:
        return 0
    words = done.stdout.split()
    return int(words[1]) if len(words) > 1 and words[1].isdecimal() else 0


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
