"""Random operations against SQLite and against the model: the same answers, the same states."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import TERMINAL, may_follow
from arc_protocol.messages.base import CommandTarget, State
from arc_protocol.messages.events import EventsRequest, LogLine, Progress
from arc_server.ports.reach import EVERYTHING, NOTHING, Reach
from arc_server.ports.records import (
    DEFAULT_QUOTAS,
    CommandFilter,
    CommandRecord,
    CommandWithBodies,
    Deployment,
    LeasedResponse,
    LeaseQuery,
    NewCommand,
    PushCircuit,
    PushLease,
    Quotas,
    StoredBlob,
    StoredInline,
)
from arc_server.ports.store import Store
from arc_server.store.sqlite_store import SqliteStore
from tests.model.memory import MemoryStore
from tests.support.store_quotas import usage
from tests.support.store_samples import (
    DEPLOYMENT,
    HANDLER_ERROR,
    NOW,
    PARAMS,
    RESULT,
    UPLOAD,
    daemon,
    secret,
    token,
    worker,
)

MEMORY_DISK = Path("/dev/shm")
"""Where there is one, a commit costs nothing: this test is about answers, not about disks."""
TARGET_IDS = ("default", "one", "two", "operator")
TARGETS = st.builds(
    lambda name, make: make(name), st.sampled_from(TARGET_IDS), st.sampled_from((daemon, worker))
)
NAMED = st.none() | st.sampled_from((*TARGET_IDS, "", "a:b"))
DEPLOYMENTS = st.sampled_from((DEPLOYMENT, "dep-2"))
QUOTAS = st.none() | st.builds(
    Quotas,
    max_live_commands=st.integers(1, 6),
    max_open_uploads=st.integers(1, 3),
    max_stored_bytes=st.sampled_from((50, 10_000_000)),
    max_idempotency_keys=st.integers(1, 3),
    max_agents=st.just(1),
)
EVENTS = st.builds(
    EventsRequest,
    lease_id=st.just(""),
    lines=st.lists(
        st.builds(
            LogLine,
            number=st.integers(1, 9),
            at=st.just(NOW),
            level=st.just("info"),
            message=st.sampled_from(("", "a", "é" * 9)),
        ),
        max_size=4,
    ),
    progress=st.none() | st.builds(Progress, done=st.just(1.0), text=st.none() | st.just("half")),
    dropped=st.integers(0, 2),
)
KEYS = st.none() | st.sampled_from(("k", "l"))
RESPONSES = st.sampled_from((RESULT, HANDLER_ERROR))
SECONDS = st.sampled_from((0, 1, 7, 30, 61))
MAYBE = st.booleans()
TOKEN_IDS = ("tok_a", "tok_b")
CREDENTIALS = st.none() | st.sampled_from(TOKEN_IDS)
REACHES = st.just(EVERYTHING) | st.sampled_from(
    (
        NOTHING,
        Reach(credential="tok_a"),
        Reach(credential="tok_b", deployments=(DEPLOYMENT,)),
        Reach(credential="tok_a", deployments=("dep*2",), commands=("a",)),
        Reach(credential="tok_b", target=daemon("one")),
    )
)


class TwoStores(RuleBasedStateMachine):
    """Does everything twice. Ids of unknown commands and leases are among those drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None))
        self.model = MemoryStore()
        self.sqlite = self.loop.run_until_complete(SqliteStore.open(self.folder / "arc.db"))
        self.now = NOW
        self.command_ids = ["cmd_none"]
        self.lease_ids = ["lease_none"]
        self.seen: dict[str, CommandRecord] = {}
        for token_id in TOKEN_IDS:
            known = token(token_id=token_id)
            first = secret(known)
            self.both(lambda store, known=known, first=first: store.put_token(known, first))

    def teardown(self) -> None:
        self.loop.run_until_complete(self.sqlite.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    def both(self, call: Callable[[Store], Any]) -> Any:
        """The answer of both, which must be one."""
        expected = self.loop.run_until_complete(_outcome(call(self.model)))
        answer = self.loop.run_until_complete(_outcome(call(self.sqlite)))
        assert answer == expected
        return answer

    def command_id(self, index: int) -> str:
        return self.command_ids[index % len(self.command_ids)]

    def lease_id(self, index: int) -> str:
        return self.lease_ids[index % len(self.lease_ids)]

    def latest_lease(self, command_id: str) -> str:
        found = self.loop.run_until_complete(self.model.get(command_id))
        return (found and found.command.lease_id) or "lease_none"

    def later(self, seconds: float | None) -> datetime | None:
        return None if seconds is None else self.now + timedelta(seconds=seconds)

    @rule(
        deployment_id=DEPLOYMENTS,
        named=NAMED,
        name=st.sampled_from("ab"),
        params=st.sampled_from(
            (PARAMS, StoredInline(data=b""), StoredBlob(path="p", size=9), UPLOAD)
        ),
        digest=st.sampled_from((b"1", b"1", b"1", b"2")),
        key=KEYS,
        deadline=st.none() | SECONDS,
        max_attempts=st.integers(1, 3),
        auto_register=MAYBE,
        created_by=CREDENTIALS,
        quotas=QUOTAS,
        retry_of=st.none() | st.just("cmd_0"),
        tags=st.none() | st.just({"team": "web"}),
        not_before=st.none() | SECONDS,
    )
    def create(
        self,
        deployment_id: str,
        named: str | None,
        name: str,
        params: Any,
        digest: bytes,
        key: str | None,
        deadline: float | None,
        max_attempts: int,
        auto_register: bool,
        created_by: str | None,
        quotas: Quotas | None,
        retry_of: str | None,
        tags: dict[str, str] | None,
        not_before: float | None,
    ) -> None:
        new = NewCommand(
            command_id=f"cmd_{len(self.command_ids)}",
            deployment_id=deployment_id,
            target_resource_id=named,
            command=name,
            params=params,
            params_digest=digest,
            max_attempts=max_attempts,
            created_at=self.now,
            deadline=self.later(deadline),
            idempotency_key=key,
            auto_register=auto_register,
            created_by=created_by,
            quotas=quotas,
            retry_of=retry_of,
            tags=tags,
            not_before=self.later(not_before),
        )
        self.both(lambda store: store.create(new))
        self.command_ids.append(new.command_id)

    @rule(
        deployment_id=DEPLOYMENTS,
        asked=st.none() | TARGETS,
        count=st.integers(0, 4),
        seconds=SECONDS,
        auto_register=MAYBE,
        max_targets=st.integers(0, 4),
        credential=CREDENTIALS,
    )
    def lease(
        self,
        deployment_id: str,
        asked: CommandTarget | None,
        count: int,
        seconds: float,
        auto_register: bool,
        max_targets: int,
        credential: str | None,
    ) -> None:
        query = LeaseQuery(
            deployment_id=deployment_id,
            target=asked,
            lease_ids=self.fresh_leases(count),
            lease_seconds=seconds,
            holder="agent-1",
            auto_register=auto_register,
            max_targets=max_targets,
            credential=credential,
        )
        self.both(lambda store: store.lease(query, self.now))

    def fresh_leases(self, count: int) -> list[str]:
        fresh = [f"lease_{len(self.lease_ids) + n}" for n in range(count)]
        self.lease_ids += fresh
        return fresh

    @rule(
        count=st.integers(1, 3),
        seconds=SECONDS,
        rooms=st.none() | st.dictionaries(DEPLOYMENTS, st.integers(0, 2)),
        each=st.none() | st.integers(1, 2),
        sending=st.none() | st.dictionaries(DEPLOYMENTS, st.integers(0, 2)),
    )
    def lease_push(
        self,
        count: int,
        seconds: float,
        rooms: dict[str, int] | None,
        each: int | None,
        sending: dict[str, int] | None,
    ) -> None:
        fresh = self.fresh_leases(count)
        self.both(
            lambda store: store.lease_push(
                fresh, seconds, self.now, rooms=rooms, per_deployment=each, sending=sending
            )
        )

    @rule(deployment_id=DEPLOYMENTS, is_open=MAYBE)
    def turn_circuit(self, deployment_id: str, is_open: bool) -> None:
        if not is_open:
            self.both(lambda store: store.close_circuit(deployment_id))
            return
        circuit = PushCircuit(
            deployment_id=deployment_id,
            opened_at=self.now,
            retry_at=self.now,
            times=len(self.command_ids),
            reason="HTTP 503",
        )
        self.both(lambda store: store.put_circuit(circuit))

    @rule(
        deployment_id=DEPLOYMENTS,
        url=st.none() | st.just("https://operator.example/push"),
        by=st.none() | st.just("root"),
    )
    def set_push(self, deployment_id: str, url: str | None, by: str | None) -> None:
        self.both(lambda store: store.set_push(deployment_id, url, "t", self.now, by))

    @rule(
        index=st.integers(0, 40),
        response=RESPONSES,
        lease=st.none() | st.integers(0, 40),
        within=REACHES,
    )
    def complete(self, index: int, response: Any, lease: int | None, within: Reach) -> None:
        command_id = self.command_id(index)
        lease_id = None if lease is None else self.lease_id(lease)
        self.both(lambda store: store.complete(command_id, lease_id, response, self.now, within))

    @rule(index=st.integers(0, 40), response=RESPONSES, within=REACHES)
    def complete_under_the_latest_lease(self, index: int, response: Any, within: Reach) -> None:
        found = self.both(lambda store: store.get(self.command_id(index)))
        if found is None:
            return
        command = found.command
        self.both(
            lambda store: store.complete(
                command.command_id, command.lease_id, response, self.now, within
            )
        )

    @rule(
        given=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), RESPONSES), max_size=4),
        within=REACHES,
    )
    def complete_all(self, given: list[tuple[int, int, Any]], within: Reach) -> None:
        submissions = [
            LeasedResponse(self.command_id(command), self.lease_id(lease), response)
            for command, lease, response in given
        ]

        async def complete(store: Store) -> list[Any]:
            outcomes = await store.complete_all(submissions, self.now, within)
            return [type(each) if isinstance(each, ArcError) else each for each in outcomes]

        self.both(complete)

    @rule(
        index=st.integers(0, 40),
        costs=MAYBE,
        within=REACHES,
        push_after=st.none() | SECONDS,
    )
    def release(self, index: int, costs: bool, within: Reach, push_after: float | None) -> None:
        lease_id, due = self.lease_id(index), self.later(push_after)
        self.both(
            lambda store: store.release(
                lease_id,
                self.now,
                costs_attempt=costs,
                within=within,
                push_after=due,
            )
        )

    @rule(
        indexes=st.lists(st.integers(0, 40), max_size=5),
        seconds=SECONDS,
        within=REACHES,
    )
    def renew(self, indexes: list[int], seconds: float, within: Reach) -> None:
        lease_ids = [self.lease_id(index) for index in indexes]
        self.both(lambda store: store.renew(lease_ids, seconds, self.now, within))

    @rule(
        index=st.integers(0, 40),
        lease=st.none() | st.integers(0, 40),
        said=EVENTS,
        keep=st.integers(1, 4),
        quotas=QUOTAS,
        within=REACHES,
    )
    def add_events(
        self,
        index: int,
        lease: int | None,
        said: EventsRequest,
        keep: int,
        quotas: Quotas | None,
        within: Reach,
    ) -> None:
        command_id = self.command_id(index)
        lease_id = self.latest_lease(command_id) if lease is None else self.lease_id(lease)
        request = msgspec.structs.replace(said, lease_id=lease_id)
        most = quotas or DEFAULT_QUOTAS
        self.both(lambda store: store.add_events(command_id, request, self.now, keep, most, within))
        self.both(lambda store: store.events(command_id, 0, 100))

    @rule(index=st.integers(0, 40))
    def get(self, index: int) -> None:
        self.both(lambda store: store.get(self.command_id(index)))

    @rule(index=st.integers(0, 40), by=CREDENTIALS)
    def cancel(self, index: int, by: str | None) -> None:
        self.both(lambda store: store.cancel(self.command_id(index), self.now, by))

    @rule(index=st.integers(0, 40), is_pushed=st.booleans())
    def mark_uploaded(self, index: int, is_pushed: bool) -> None:
        params = StoredBlob(path="p", size=5)
        lease = None
        if is_pushed:
            lease = PushLease(self.fresh_leases(1)[0], self.now + timedelta(seconds=15))
        self.both(
            lambda store: store.mark_uploaded(self.command_id(index), params, self.now, lease)
        )

    @rule(
        index=st.integers(0, 40),
        params=st.none() | st.just(PARAMS),
        response=st.none() | RESPONSES,
    )
    def write_payload(self, index: int, params: Any, response: Any) -> None:
        self.both(lambda store: store.write_payload(self.command_id(index), params, response))

    @rule(
        deployment_id=DEPLOYMENTS,
        configured=st.lists(TARGETS, max_size=2, unique_by=lambda target: target.resource_id),
        default=st.none() | st.sampled_from(TARGET_IDS),
        push_url=st.none() | st.none() | st.just("https://worker.example/push"),
    )
    def put_deployment(
        self,
        deployment_id: str,
        configured: list[CommandTarget],
        default: str | None,
        push_url: str | None,
    ) -> None:
        deployment = Deployment(
            deployment_id=deployment_id,
            targets=tuple(configured),
            default_target_id=default,
            push_url=push_url,
        )
        self.both(lambda store: store.put_deployment(deployment, self.now))

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(limit=st.integers(1, 3))
    def expire_due(self, limit: int) -> None:
        self.both(lambda store: store.expire_due(self.now, limit))

    @rule(limit=st.integers(1, 3))
    def requeue_lapsed(self, limit: int) -> None:
        self.both(lambda store: store.requeue_lapsed(self.now, limit))

    @rule(index=st.integers(0, 40))
    def past_leases(self, index: int) -> None:
        self.both(lambda store: store.past_leases(self.command_id(index)))

    @rule(limit=st.integers(1, 5))
    def release_delayed(self, limit: int) -> None:
        self.both(lambda store: store.release_delayed(self.now, limit))

    @rule(token_id=st.sampled_from(TOKEN_IDS))
    def revoke(self, token_id: str) -> None:
        self.both(lambda store: store.revoke_token(token_id, self.now))

    @rule(limit=st.integers(1, 3))
    def requeue_revoked(self, limit: int) -> None:
        self.both(lambda store: store.requeue_revoked(self.now, limit))

    @rule(seconds=st.sampled_from((-3600, -0.5, 7)))
    def shift_leases(self, seconds: float) -> None:
        self.both(lambda store: store.shift_leases(seconds))

    @rule(since=SECONDS, until=SECONDS)
    def grant_grace(self, since: float, until: float) -> None:
        lapsed_since = self.now - timedelta(seconds=since)
        end = self.now + timedelta(seconds=until)
        self.both(lambda store: store.grant_grace(lapsed_since, self.now, end))

    @rule()
    def forget_keys(self) -> None:
        self.both(lambda store: store.forget_idempotency_keys(self.now + timedelta(days=2), 100))

    @rule(state=st.sampled_from(State), age=SECONDS, key_age=SECONDS)
    def purge_commands(self, state: State, age: float, key_age: float) -> None:
        before, keys_before = (
            self.now - timedelta(seconds=age),
            self.now - timedelta(seconds=key_age),
        )

        async def purge(store: Store) -> set[str]:
            gone: set[str] = set()
            while True:  # a batch of SQLite may end by its time
                purged = await store.purge_commands(state, before, keys_before, 10)
                gone |= set(purged.command_ids)
                if purged.is_done:
                    return gone

        self.both(purge)

    @rule(state=st.sampled_from(State), age=SECONDS)
    def strip_bodies(self, state: State, age: float) -> None:
        before = self.now - timedelta(seconds=age)

        async def strip(store: Store) -> list[str]:
            paths: list[str] = []
            mark, is_done = (0, 0), False
            while not is_done:
                stripped = await store.strip_bodies(state, mark, before, 10)
                paths += stripped.paths
                mark, is_done = stripped.mark, stripped.is_done
            return sorted(paths)

        self.both(strip)

    @rule(state=st.sampled_from(State), age=SECONDS)
    def strip_events(self, state: State, age: float) -> None:
        before = self.now - timedelta(seconds=age)

        async def strip(store: Store) -> None:
            mark, is_done = (0, 0), False
            while not is_done:
                stripped = await store.strip_events(state, mark, before, 10)
                mark, is_done = stripped.mark, stripped.is_done

        self.both(strip)

    @rule(age=SECONDS, limit=st.integers(1, 3))
    def fail_abandoned_uploads(self, age: float, limit: int) -> None:
        before = self.now - timedelta(seconds=age)
        self.both(lambda store: store.fail_abandoned_uploads(before, self.now, limit))

    @rule(index=st.integers(0, 40), size=st.integers(0, 9))
    def mark_arrived(self, index: int, size: int) -> None:
        self.both(lambda store: store.mark_arrived(self.command_id(index), size))

    @rule(limit=st.integers(1, 3))
    def forget_uploads(self, limit: int) -> None:
        async def forget(store: Any) -> Any:
            left = await store.left_uploads(limit)
            await store.forget_uploads(left)
            return left

        self.both(forget)

    @rule(index=st.integers(0, 30))
    def delete_command(self, index: int) -> None:
        self.both(lambda store: store.delete_command(self.command_id(index)))

    @precondition(lambda self: len(self.command_ids) > 1)
    @rule()
    def restart(self) -> None:
        self.loop.run_until_complete(self.sqlite.close())
        self.sqlite = self.loop.run_until_complete(SqliteStore.open(self.folder / "arc.db"))

    @invariant()
    def everything_is_stored_alike(self) -> None:
        for command_id in self.command_ids:
            found = self.both(lambda store, each=command_id: store.get_with_bodies(each))
            if found is not None:
                self.follow(found)
        for deployment_id in (DEPLOYMENT, "dep-2"):
            self.both(lambda store, each=deployment_id: store.get_deployment(each))
            used = self.loop.run_until_complete(usage(self.sqlite, deployment_id))
            assert used == self.model.usage(deployment_id)
        self.both(lambda store: store.next_push_at())
        self.both(lambda store: store.next_push_at([DEPLOYMENT]))
        self.both(lambda store: store.list_circuits())
        self.both(lambda store: store.list_pushed())
        self.both(lambda store: store.has_live_leases())
        page = self.both(_listed)
        assert page == sorted(page, key=lambda command: int(command.command_id[4:]), reverse=True)

    def follow(self, found: CommandWithBodies) -> None:
        """Each change of state is one of the table, attempts never go down, the end is the end."""
        command = found.command
        before = self.seen.get(command.command_id)
        self.seen[command.command_id] = command
        if command.state is State.FAILED:
            assert found.response is not None
        if before is None or before == command:
            return
        assert before.state not in TERMINAL
        assert command.attempt >= before.attempt
        assert command.attempt <= command.max_attempts
        is_step = command.state is before.state or may_follow(before.state, command.state)
        step = (before.state, command.state)
        is_late_response = step == (State.PENDING, State.SUCCEEDED)
        is_pushed_at_once = step == (State.PENDING_UPLOAD, State.DISPATCHED)
        assert is_step or is_late_response or is_pushed_at_once


async def _listed(store: Store) -> list[CommandRecord]:
    return list((await store.list(CommandFilter(), None, 1000)).commands)


async def _outcome(answer: Any) -> Any:
    """Return what a call answers, or the kind of error that it raises; sequences as lists."""
    try:
        return _plain(await answer)
    except ArcError as error:
        return type(error)


def _plain(value: Any) -> Any:
    if hasattr(value, "__struct_fields__"):
        for name in ("grants", "ended", "renewed", "lost", "targets"):
            if hasattr(value, name):
                return [type(value)] + [
                    _plain(getattr(value, field)) for field in value.__struct_fields__
                ]
        return value
    return list(value) if isinstance(value, list | tuple) else value


TwoStores.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_sqlite_answers_as_the_model_does = TwoStores.TestCase
