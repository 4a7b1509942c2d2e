"""Many operations, one commit: no operation pays for its neighbour."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from arc_protocol.errors import CommandNotFound, StoreUnavailable
from arc_protocol.messages.base import State
from arc_runtime import failpoints
from arc_server.ports.records import CommandFilter
from arc_server.store.engine import batches
from arc_server.store.engine.session import StoreSession
from arc_server.store.operations import sweeps
from arc_server.store.sqlite_store import SqliteStore
from tests.support.service_world import World
from tests.support.store_samples import (
    NOW,
    RESULT,
    after,
    create,
    granted_ids,
    lease,
    leased,
    new,
    read,
    secret,
    token,
)
from tests.support.waiting import until


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The failpoints that are passed, in order."""
    names: list[str] = []
    monkeypatch.setattr(failpoints, "hit", names.append)
    return names


async def test_all_that_waits_shares_one_commit(sqlite: SqliteStore, passed: list[str]) -> None:
    await asyncio.gather(*(create(sqlite) for _ in range(100)))

    assert passed.count("store.after_operation") == 100
    assert passed.count("store.after_commit") <= 2


def sleeping(world: World) -> int:
    """Return how many polls wait for work and do not look."""
    queues: Any = world.announcements.work._queues
    return sum(not waiter.is_looking for queue in queues.values() for waiter in queue)


async def test_a_command_and_its_lease_to_a_poll_that_sleeps_share_a_commit(
    sqlite: SqliteStore, passed: list[str]
) -> None:
    world = World(sqlite, is_flaky=False)
    polling = asyncio.create_task(world.poll(wait=60))
    await until(lambda: sleeping(world) == 1)
    passed.clear()

    created, polled = await asyncio.gather(world.create(), polling)

    assert [lease.command_id for lease in polled.leases] == [created.command_id]
    assert passed.count("store.after_operation") == 2
    assert passed.count("store.after_commit") == 1


async def test_a_command_wakes_one_of_the_polls_that_sleep(
    sqlite: SqliteStore, passed: list[str]
) -> None:
    world = World(sqlite, is_flaky=False)
    polls = [asyncio.create_task(world.poll(wait=60, agent=f"agent-{n}")) for n in range(3)]
    await until(lambda: sleeping(world) == 3)
    passed.clear()

    await world.create()
    await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
    await sqlite.check()

    assert sum(poll.done() for poll in polls) == 1
    assert passed.count("store.after_operation") == 2
    world.close()
    await asyncio.gather(*polls)


async def test_a_batch_is_bounded(tmp_path: Path, passed: list[str]) -> None:
    store = await SqliteStore.open(tmp_path / "arc.db", max_batch=10)

    await asyncio.gather(*(create(store) for _ in range(100)))

    assert passed.count("store.after_commit") >= 10
    await store.close()


async def test_operations_past_the_queue_are_refused_and_those_in_it_are_done(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_WAITING", 20 * batches.SHARE)

    answers = await asyncio.gather(*(create(sqlite) for _ in range(50)), return_exceptions=True)

    refused = [answer for answer in answers if isinstance(answer, StoreUnavailable)]
    assert len(refused) == 30
    assert len(granted_ids(await lease(sqlite, 50))) == 20
    assert await create(sqlite)


async def test_the_failpoints_of_a_commit_are_passed_in_order(
    sqlite: SqliteStore, passed: list[str]
) -> None:
    await create(sqlite)

    assert passed == [
        "store.before_begin",
        "store.after_begin",
        "store.after_operation",
        "store.before_commit",
        "store.after_commit",
        "store.before_answer",
    ]


async def test_a_refused_operation_leaves_its_neighbours_alone(
    sqlite: SqliteStore, passed: list[str]
) -> None:
    outcomes_ = await asyncio.gather(
        create(sqlite, command_id="cmd_a"),
        sqlite.cancel("cmd_none", NOW),
        create(sqlite, command_id="cmd_b"),
        return_exceptions=True,
    )

    assert isinstance(outcomes_[1], CommandNotFound)
    assert passed.count("store.after_commit") == 1
    assert (await read(sqlite, "cmd_a")).state is State.PENDING
    assert (await read(sqlite, "cmd_b")).state is State.PENDING


def _fail_in_the_middle(db: StoreSession) -> None:
    db.change("put_sign_of_life", now=5)
    raise ArithmeticError("in the middle")


async def test_an_operation_that_fails_in_the_middle_is_undone_alone(sqlite: SqliteStore) -> None:
    held = await leased(sqlite)

    answers = await asyncio.gather(
        create(sqlite, command_id="cmd_a", target_resource_id="vault"),
        sqlite.database.writes.submit(_fail_in_the_middle),
        sqlite.complete(held.command_id, held.lease_id, RESULT, after(1)),
        create(sqlite, command_id="cmd_b"),
        return_exceptions=True,
    )

    assert isinstance(answers[1], ArithmeticError)
    assert await sqlite.last_sign_of_life() is None
    assert (await read(sqlite, held.command_id)).state is State.SUCCEEDED
    granted = await lease(sqlite, 9)
    assert granted_ids(granted) == ["cmd_a", "cmd_b"]


async def test_an_operation_that_fails_in_the_middle_by_itself_is_undone(
    sqlite: SqliteStore,
) -> None:
    with pytest.raises(ArithmeticError):
        await sqlite.database.writes.submit(_fail_in_the_middle)

    assert await sqlite.last_sign_of_life() is None
    await create(sqlite)


async def test_a_value_that_sqlite_cannot_hold_concerns_its_own_operation(
    sqlite: SqliteStore,
) -> None:
    unlike = token()
    answers: list[Any] = await asyncio.gather(
        create(sqlite, command_id="cmd_a"),
        create(sqlite, command_id="cmd_b", command="\ud800"),
        create(sqlite, command_id="cmd_c", max_attempts=2**70),
        sqlite.put_token(unlike, secret(unlike, token_hash=None)),
        create(sqlite, command_id="cmd_d"),
        return_exceptions=True,
    )

    assert isinstance(answers[1], UnicodeEncodeError)
    assert isinstance(answers[2], OverflowError)
    assert isinstance(answers[3], StoreUnavailable)
    page = (await lease(sqlite, 9)).grants
    assert [grant.command.command_id for grant in page] == ["cmd_a", "cmd_d"]


async def test_a_caller_that_goes_away_breaks_no_batch(sqlite: SqliteStore) -> None:
    tasks = [asyncio.create_task(create(sqlite, command_id=f"cmd_{n}")) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()

    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    for number in range(1, 20, 2):
        assert await sqlite.get(f"cmd_{number}") is not None
    await create(sqlite)


async def test_what_was_not_begun_when_its_caller_went_is_not_done(sqlite: SqliteStore) -> None:
    submitted = sqlite.database.writes.submit(sweeps.sign_of_life, NOW)
    submitted.cancel()

    await create(sqlite)

    assert await sqlite.last_sign_of_life() is None


async def test_a_slow_list_delays_no_read(sqlite: SqliteStore) -> None:
    command = await create(sqlite)
    read_end, write_end = os.pipe()

    def stall(db: StoreSession) -> bytes:
        return os.read(read_end, 1)

    listing = sqlite.database.lists.submit(stall)
    found = await sqlite.get(command.command_id)
    await create(sqlite)

    assert found is not None
    assert not listing.done()
    os.write(write_end, b"x")
    assert await listing == b"x"
    os.close(read_end)
    os.close(write_end)


async def test_a_read_sees_what_was_acknowledged_before_it(sqlite: SqliteStore) -> None:
    async def one() -> None:
        command = await create(sqlite)
        assert await read(sqlite, command.command_id) == command

    await asyncio.gather(*(one() for _ in range(50)))


async def test_a_reading_connection_cannot_write(sqlite: SqliteStore) -> None:
    with pytest.raises(StoreUnavailable):
        await sqlite.database.reads.submit(sweeps.sign_of_life, NOW)

    assert await sqlite.last_sign_of_life() is None


async def test_closing_commits_what_is_queued(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "arc.db")
    waiting = [asyncio.create_task(store.create(new(command_id=f"cmd_{n}"))) for n in range(30)]
    await asyncio.sleep(0)

    await store.close()

    for created in await asyncio.gather(*waiting):
        assert created.command.state is State.PENDING
    connection = sqlite3.connect(tmp_path / "arc.db")
    [(count,)] = connection.execute("SELECT count(*) FROM commands").fetchall()
    connection.close()
    assert count == 30


async def test_another_process_that_writes_is_waited_for(
    sqlite: SqliteStore, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "arc.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    creating = asyncio.create_task(create(sqlite))
    done, _ = await asyncio.wait({creating}, timeout=0.05)
    assert not done
    other.execute("COMMIT")
    other.close()

    assert (await creating).state is State.PENDING


async def test_another_process_that_never_ends_its_write_makes_it_unavailable(
    tmp_path: Path,
) -> None:
    store = await SqliteStore.open(tmp_path / "arc.db", busy_timeout_seconds=0.05)
    other = sqlite3.connect(tmp_path / "arc.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreUnavailable, match="cannot do this now"):
        await create(store)
    other.execute("ROLLBACK")
    other.close()

    await create(store)
    await store.close()


async def test_a_batch_that_breaks_off_leaves_no_transaction_open(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [KeyError("a bug")]

    def hit(name: str) -> None:
        if name == "store.after_operation" and left:
            raise left.pop()

    monkeypatch.setattr(failpoints, "hit", hit)

    with pytest.raises(StoreUnavailable, match="cannot do this now"):
        await create(sqlite, command_id="cmd_a")

    assert await sqlite.get("cmd_a") is None
    await create(sqlite, command_id="cmd_a")


async def test_a_checkpoint_gives_the_room_of_the_log_back(sqlite: SqliteStore) -> None:
    for _ in range(20):
        await create(sqlite)
    log = sqlite.database.path.with_name("arc.db-wal")
    assert log.stat().st_size > 0

    await sqlite.checkpoint()

    assert log.stat().st_size == 0
    assert len((await sqlite.list(CommandFilter(), None, 100)).commands) == 20
    await create(sqlite)


async def test_a_checkpoint_beside_a_reader_of_another_process_is_left_for_later(
    sqlite: SqliteStore,
) -> None:
    await create(sqlite)
    log = sqlite.database.path.with_name("arc.db-wal")
    with closing(sqlite3.connect(sqlite.database.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM commands").fetchall()
        await create(sqlite)

        await sqlite.checkpoint()

        assert log.stat().st_size > 0
        await create(sqlite)
