"""Prometheus' promtool: the one of this machine, or one out of Debian's package.

Run as a program, this fetches it; where it cannot be had, it says why, and the tests are left out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OWN = Path(__file__).parents[2] / ".promtool" / "promtool"


class CannotFetch(Exception):
    """The tool cannot be had here; the message says why."""


def find() -> Path | None:
    """The tool, None if it is not there."""
    found = shutil.which("promtool")
    if found is not None:
        return Path(found)
    return OWN if OWN.exists() else None


def fetch() -> None:
    """Unpack the tool from Debian's package `prometheus`. Raises CannotFetch."""
    for needed in ("apt-get", "dpkg-deb"):
        if shutil.which(needed) is None:
            raise CannotFetch(f"there is no promtool, and no {needed} to fetch it with")
    with tempfile.TemporaryDirectory() as scratch:
        for argv in (
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "prometheus"],
            ["sh", "-c", "dpkg-deb --extract prometheus_*.deb ."],
        ):
            done = subprocess.run(
                argv, cwd=scratch, capture_output=True, text=True, timeout=300, check=False
            )
            if done.returncode != 0:
                raise CannotFetch(f"{argv[0]}: {done.stderr.strip()}")
        OWN.parent.mkdir(exist_ok=True)
        shutil.copy2(Path(scratch) / "usr" / "bin" / "promtool", OWN)


if __name__ == "__main__":
    if find() is None:
        try:
            fetch()
        except CannotFetch as error:
            sys.stderr.write(f"the rules are not run: {error}\n")
