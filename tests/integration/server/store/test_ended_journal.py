"""Secrets and keys that newer ones replaced: a restore must not bring them back to life."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arc_server.backup.restoring import turn_epoch
from arc_server.ports.records import AgentKey, EnrolToken, NewCredential
from arc_server.store.engine.ended_journal import JOURNAL, EndedJournal, read_journal
from arc_server.store.sqlite_store import SqliteStore
from tests.support.store_samples import DEPLOYMENT, NOW, after, secret, token


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data directory of a server."""
    made = tmp_path / "data"
    made.mkdir()
    return made


async def opened(data: Path) -> SqliteStore:
    return await SqliteStore.open(data / "arc.db")


async def restored(backup: Path, former: Path) -> SqliteStore:
    """The store of a backup, turned to a new epoch by the journal of the former directory."""
    turn_epoch(backup / "arc.db", read_journal(former / JOURNAL), NOW)
    EndedJournal(backup / JOURNAL).add(read_journal(former / JOURNAL))
    return await opened(backup)


async def test_a_secret_that_was_rotated_away_ends_and_its_successor_goes_on(data: Path) -> None:
    store = await opened(data)
    known = token()
    first = secret(known)
    await store.put_token(known, first)
    await store.close()
    backup = Path(shutil.copytree(data, data.parent / "backup"))
    store = await opened(data)
    second = secret(known, created_at=after(10))
    third = secret(known, created_at=after(20))
    await store.rotate_token(second, after(100))
    await store.rotate_token(third, after(50))
    await store.close()

    for _ in range(2):  # a second restore by the same lines changes nothing
        store = await restored(backup, data)
        ends = []
        for each in (first, second, third):
            found = await store.find_token(each.token_hash)
            assert found is not None
            ends.append(found.secret.ends_at)
        await store.close()
        assert ends == [after(50), after(50), None]


async def test_a_key_that_was_renewed_away_ends_and_its_successor_goes_on(data: Path) -> None:
    store = await opened(data)
    await store.put_enrol_token(
        EnrolToken(
            token_hash=b"t" * 32,
            token_id="enr_1",
            deployment_id=DEPLOYMENT,
            uses=1,
            created_at=NOW,
            expires_at=after(3600),
        )
    )
    await store.enrol(
        b"t" * 32,
        NewCredential(credential_id="cred_1", key_id="old", public_key=b"o" * 32, hostname="db-7"),
        NOW,
    )
    await store.use_key("old", NOW, after(1))
    await store.close()
    backup = Path(shutil.copytree(data, data.parent / "backup"))
    store = await opened(data)
    new = AgentKey(key_id="new", credential_id="cred_1", public_key=b"n" * 32, made_at=after(10))
    await store.add_key(new, "old", after(10))
    await store.use_key("new", after(12), after(100))
    await store.close()

    store = await restored(backup, data)

    old_key, new_key = await store.find_key("old"), await store.find_key("new")
    await store.close()
    assert old_key is not None
    assert old_key.key.ends_at == after(100)
    assert new_key is not None
    assert (new_key.key.public_key, new_key.key.ends_at) == (b"n" * 32, None)


async def test_what_no_line_says_is_added_when_the_database_opens(data: Path) -> None:
    store = await opened(data)
    known = token()
    first, second = secret(known), secret(known, created_at=after(10))
    await store.put_token(known, first)
    await store.close()
    backup = Path(shutil.copytree(data, data.parent / "backup"))
    store = await opened(data)
    await store.rotate_token(second, after(50))
    await store.close()
    (data / JOURNAL).unlink()  # as if the process had died before its line
    await (await opened(data)).close()

    store = await restored(backup, data)

    found = [await store.find_token(each.token_hash) for each in (first, second)]
    await store.close()
    assert [each and each.secret.ends_at for each in found] == [after(50), None]


async def test_a_line_of_an_older_successor_brings_nothing_back(data: Path) -> None:
    store = await opened(data)
    known = token()
    second = secret(known, created_at=after(10))
    await store.put_token(known, secret(known))
    await store.rotate_token(second, after(11))
    lines = (data / JOURNAL).read_bytes()
    await store.rotate_token(secret(known, created_at=after(20)), after(20))  # ends it at once
    await store.close()
    (data / JOURNAL).write_bytes(lines)
    backup = Path(shutil.copytree(data, data.parent / "backup"))

    store = await restored(backup, data)

    found = await store.find_token(second.token_hash)
    await store.close()
    assert found is None or found.secret.ends_at is not None
