"""Commands of root at a data directory of the server's own user."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.warm_programs import run

OWNER = 4242
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Return a data directory of another user, at a place that this user may enter."""
    with tempfile.TemporaryDirectory() as place:
        data_dir = Path(place, "data")
        arc_server("token", "create", "--scope=admin", "--init", data_dir=data_dir)
        os.chmod(place, 0o755)
        for file in (data_dir, *data_dir.rglob("*")):
            os.chown(file, OWNER, OWNER)
        yield data_dir


def arc_server(*arguments: str, data_dir: Path) -> str:
    ended = run("arc-server", [*arguments, "--data-dir", str(data_dir)])
    assert ended.returncode == 0, ended.stderr
    if data_dir.stat().st_uid == OWNER:
        assert {file.stat().st_uid for file in data_dir.rglob("*")} == {OWNER}
    return ended.stdout


def token_of(data_dir: Path) -> str:
    return json.loads(arc_server("token", "list", "--json", data_dir=data_dir))[0]["id"]


def test_commands_of_root_leave_files_that_the_server_may_read(data_dir: Path) -> None:
    secret = data_dir.parent / "push.token"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    push = ["--push-url=https://worker.example/arc", f"--push-token-file={secret}"]

    arc_server("deployment", "set", "dep-1", *push, data_dir=data_dir)
    arc_server("token", "revoke", token_of(data_dir), data_dir=data_dir)
    arc_server("keys", "rotate", data_dir=data_dir)
    arc_server("purge", data_dir=data_dir)
    arc_server("backup", str(data_dir.parent / "backup"), data_dir=data_dir)

    assert (data_dir / "keys" / "signing.json").exists()
    assert (data_dir.parent / "backup" / "manifest.json").stat().st_uid == 0
