"""The store in one SQLite file: WAL, synchronous=FULL, one writer with group commit.

Every write is an operation of creating.py, leasing.py, outcomes.py or directory.py that waits in
the queue of group_commit.py; reads have connections of their own. SQL is in sql/*.sql.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from arc_protocol.errors import ArcError, StoreUnavailable
from arc_protocol.messages.agents import AgentRegistration
from arc_protocol.messages.events import EventsRequest
from arc_server.ports.records import (
    AgentKey,
    AgentPresence,
    Command,
    CommandFilter,
    CommandPage,
    CommandWithBodies,
    CommandWithResponse,
    Completion,
    Created,
    Credential,
    Deployment,
    EnrolToken,
    EventPage,
    Granted,
    Holder,
    KnownKey,
    LeaseQuery,
    NewCommand,
    NewCredential,
    Renewal,
    StoredBody,
    StoredResponse,
    Submission,
    Token,
)
from arc_server.store.engine import opening, queries, schema
from arc_server.store.engine.batches import Batches, Operation
from arc_server.store.engine.lock import DirectoryLock
from arc_server.store.engine.session import Session
from arc_server.store.engine.thread import Worker
from arc_server.store.engine.transactions import Reading, Writing
from arc_server.store.operations import (
    agents,
    complete,
    create,
    credentials,
    deployments,
    events,
    lease,
    read,
    sweeps,
    transitions,
)

MAX_BATCH: Final = 512
"""Operations in one commit. More only make the first wait for the last."""


class SqliteStore:
    """Store in one file. Made by `open`.

    An operation whose caller is cancelled may be committed all the same.
    """

    def __init__(self, resources: AsyncExitStack, max_batch: int) -> None:
        self._resources = resources
        self._max_batch = max_batch
        self._failed = asyncio.Event()
        self._failure = ""
        self._writes: Batches
        self._reads: Batches
        self._lists: Batches

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        exclusive: bool = True,
        busy_timeout_seconds: float = 5.0,
        max_batch: int = MAX_BATCH,
    ) -> SqliteStore:
        """Open a database, make it or bring its schema up to date.

        `exclusive`: as the only server of the data directory; the command line's tools, which work
        beside one, leave it off. Raises StoreRefused (StoreLocked, StoreCorrupt, StoreTooNew);
        nothing was touched then.
        """
        async with AsyncExitStack() as resources:
            store = cls(resources, max_batch)
            with opening.refusing(path):
                if exclusive:
                    resources.callback(DirectoryLock.take(opening.lock_path(path)).release)
                await asyncio.to_thread(opening.look, path)
                writer = await opening.open_writer(
                    path, is_exclusive=exclusive, busy_timeout_seconds=busy_timeout_seconds
                )
                store._writes = store._serve(writer, Writing(_session(writer), store._fail_soon()))
                reader = await opening.open_reader(path, busy_timeout_seconds=busy_timeout_seconds)
                store._reads = store._serve(reader, Reading(_session(reader)))
                lister = await opening.open_reader(path, busy_timeout_seconds=busy_timeout_seconds)
                store._lists = store._serve(lister, Reading(_session(lister)))
            store._resources = resources.pop_all()
            return store

    def _serve(self, worker: Worker, perform: Callable[[Sequence[Operation]], None]) -> Batches:
        """A connection's queue, at work; `close` ends it before the connection."""
        self._resources.push_async_callback(worker.close)
        batches = Batches(worker, perform, max_batch=self._max_batch)
        task = asyncio.create_task(batches.run())

        async def finish() -> None:
            batches.close()
            await asyncio.wait({task})

        self._resources.push_async_callback(finish)
        return batches

    def _fail_soon(self) -> Callable[[str], None]:
        """What the writing thread calls when a commit has left doubt."""
        loop = asyncio.get_running_loop()

        def fail(reason: str) -> None:
            self._failure = reason
            loop.call_soon_threadsafe(self._failed.set)

        return fail

    async def wait_failed(self) -> str:
        """Wait until the store has failed for good, and say why: the process is to stop then.

        After an I/O error at a commit nobody knows what is on the disk; only opening it anew tells.
        """
        await self._failed.wait()
        return self._failure

    # commands

    async def create(self, new: NewCommand) -> Created:
        """See Store."""
        return await self._writes.submit(create.create, new)

    async def mark_uploaded(self, command_id: str, params: StoredBody, now: datetime) -> Command:
        """See Store."""
        outcome = await self._writes.submit(create.mark_uploaded, command_id, params, now)
        if isinstance(outcome, ArcError):
            raise outcome
        return outcome

    async def get(self, command_id: str) -> CommandWithResponse | None:
        """See Store."""
        return await self._reads.submit(read.get, command_id)

    async def get_with_bodies(self, command_id: str) -> CommandWithBodies | None:
        """See Store."""
        return await self._reads.submit(read.get_with_bodies, command_id)

    async def write_payload(
        self, command_id: str, params: StoredBody | None, response: StoredResponse | None
    ) -> None:
        """See Store."""
        await self._writes.submit(complete.write_payload, command_id, params, response)

    async def lease(self, query: LeaseQuery, now: datetime) -> Granted:
        """See Store. Looks on as long as it found only what has ended."""
        return await self._look_on(lambda: self._writes.submit(lease.lease, query, now))

    async def lease_push(
        self, lease_ids: Sequence[str], lease_seconds: float, now: datetime
    ) -> Granted:
        """See Store."""
        return await self._look_on(
            lambda: self._writes.submit(lease.lease_push, lease_ids, lease_seconds, now)
        )

    async def _look_on(self, look: Callable[[], asyncio.Future[lease.Pass]]) -> Granted:
        """Ask again while a look was cut short by what it had to end, and found nothing yet."""
        ended: list[Command] = []
        while True:
            granted, is_cut = await look()
            ended += granted.ended
            if granted.grants or not is_cut:
                return msgspec.structs.replace(granted, ended=ended)

    async def next_push_at(self) -> datetime | None:
        """See Store."""
        return await self._reads.submit(read.next_push_at)

    async def renew(
        self,
        lease_ids: Sequence[str],
        lease_seconds: float,
        now: datetime,
        deployment_id: str | None = None,
    ) -> Renewal:
        """See Store."""
        return await self._writes.submit(lease.renew, lease_ids, lease_seconds, now, deployment_id)

    async def release(
        self,
        lease_id: str,
        now: datetime,
        *,
        costs_attempt: bool,
        deployment_id: str | None = None,
        push_after: datetime | None = None,
    ) -> Command:
        """See Store."""
        return await self._writes.submit(
            lease.release, lease_id, now, costs_attempt, deployment_id, push_after
        )

    async def complete(
        self, command_id: str, lease_id: str | None, response: StoredResponse, now: datetime
    ) -> Completion:
        """See Store."""
        return await self._writes.submit(complete.complete, command_id, lease_id, response, now)

    async def complete_all(
        self, submissions: Sequence[Submission], now: datetime, deployment_id: str | None = None
    ) -> Sequence[Completion | ArcError]:
        """See Store."""
        return await self._writes.submit(complete.complete_all, submissions, now, deployment_id)

    async def add_events(
        self, command_id: str, request: EventsRequest, keep: int, deployment_id: str | None = None
    ) -> Command:
        """See Store."""
        return await self._writes.submit(events.add, command_id, request, keep, deployment_id)

    async def events(self, command_id: str, after: int, limit: int) -> EventPage | None:
        """See Store."""
        return await self._lists.submit(events.read, command_id, after, limit)

    async def cancel(self, command_id: str, now: datetime) -> Completion:
        """See Store."""
        return await self._writes.submit(complete.cancel, command_id, now)

    async def list(self, which: CommandFilter, before: int | None, limit: int) -> CommandPage:
        """See Store."""
        return await self._lists.submit(read.list_commands, which, before, limit)

    # time

    async def expire_due(self, now: datetime, limit: int) -> Sequence[Command]:
        """See Store."""
        return await self._writes.submit(sweeps.expire_due, now, limit)

    async def requeue_lapsed(self, now: datetime, limit: int) -> Sequence[Command]:
        """See Store."""
        return await self._writes.submit(sweeps.requeue_lapsed, now, limit)

    async def forget_idempotency_keys(self, before: datetime, limit: int) -> int:
        """See Store."""
        return await self._writes.submit(sweeps.forget_keys, before, limit)

    async def shift_leases(self, seconds: float) -> int:
        """See Store."""
        return await self._writes.submit(sweeps.shift_leases, seconds)

    async def grant_grace(self, lapsed_since: datetime, now: datetime, until: datetime) -> int:
        """See Store."""
        return await self._writes.submit(transitions.grant_grace, lapsed_since, now, until)

    async def sign_of_life(self, now: datetime) -> None:
        """See Store."""
        await self._writes.submit(sweeps.sign_of_life, now)

    async def last_sign_of_life(self) -> datetime | None:
        """See Store."""
        return await self._reads.submit(sweeps.last_sign_of_life)

    async def has_live_leases(self) -> bool:
        """See Store."""
        return await self._reads.submit(sweeps.has_live_leases)

    # deployments, agents, tokens

    async def put_deployment(self, deployment: Deployment, now: datetime) -> None:
        """See Store."""
        await self._writes.submit(deployments.put_deployment, deployment, now)

    async def get_deployment(self, deployment_id: str) -> Deployment | None:
        """See Store."""
        return await self._reads.submit(deployments.get_deployment, deployment_id)

    async def put_agent(
        self, agent_id: str, registration: AgentRegistration, now: datetime
    ) -> AgentPresence:
        """See Store."""
        return await self._writes.submit(agents.put_agent, agent_id, registration, now)

    async def touch_agents(self, seen: Mapping[Holder, datetime]) -> None:
        """See Store."""
        await self._writes.submit(agents.touch_agents, seen)

    async def list_agents(
        self,
        deployment_id: str | None,
        seen_since: datetime,
        limit: int,
        *,
        with_schemas: bool = False,
    ) -> Sequence[AgentPresence]:
        """See Store."""
        return await self._lists.submit(
            agents.list_agents, deployment_id, seen_since, limit, with_schemas
        )

    async def put_token(self, token: Token) -> None:
        """See Store."""
        await self._writes.submit(credentials.put_token, token)

    async def find_token(self, token_hash: bytes) -> Token | None:
        """See Store."""
        return await self._reads.submit(credentials.find_token, token_hash)

    async def list_tokens(self) -> Sequence[Token]:
        """See Store."""
        return await self._lists.submit(credentials.list_tokens)

    async def revoke_token(self, token_id: str, now: datetime) -> bool:
        """See Store."""
        return await self._writes.submit(credentials.revoke_token, token_id, now)

    # credentials of agents

    async def put_enrol_token(self, token: EnrolToken) -> None:
        """See CredentialStore."""
        await self._writes.submit(credentials.put_enrol_token, token)

    async def list_enrol_tokens(self) -> Sequence[EnrolToken]:
        """See CredentialStore."""
        return await self._lists.submit(credentials.list_enrol_tokens)

    async def revoke_enrol_token(self, token_id: str, now: datetime) -> bool:
        """See CredentialStore."""
        return await self._writes.submit(credentials.revoke_enrol_token, token_id, now)

    async def enrol(self, token_hash: bytes, new: NewCredential, now: datetime) -> KnownKey:
        """See CredentialStore."""
        return await self._writes.submit(credentials.enrol, token_hash, new, now)

    async def find_key(self, key_id: str) -> KnownKey | None:
        """See CredentialStore."""
        return await self._reads.submit(credentials.find_key, key_id)

    async def add_key(self, new: AgentKey, signed_by: str, now: datetime) -> KnownKey:
        """See CredentialStore."""
        return await self._writes.submit(credentials.add_key, new, signed_by, now)

    async def use_key(self, key_id: str, now: datetime, older_end_at: datetime) -> None:
        """See CredentialStore."""
        await self._writes.submit(credentials.use_key, key_id, now, older_end_at)

    async def find_credential(self, credential_id: str) -> Credential | None:
        """See CredentialStore."""
        return await self._reads.submit(credentials.find_credential, credential_id)

    async def list_credentials(self) -> Sequence[Credential]:
        """See CredentialStore."""
        return await self._lists.submit(credentials.list_credentials)

    async def revoke_credential(self, credential_id: str, now: datetime) -> bool:
        """See CredentialStore."""
        return await self._writes.submit(credentials.revoke_credential, credential_id, now)

    async def revocations(self) -> int:
        """See CredentialStore."""
        return await self._reads.submit(credentials.revocations)

    # the database itself

    async def check(self) -> None:
        """See Store."""
        if self._failed.is_set():
            raise StoreUnavailable(self._failure)
        if await self._reads.submit(read.schema_version) != schema.newest():
            raise StoreUnavailable("the schema of the database is not this release's")

    async def close(self) -> None:
        """See Store."""
        await self._resources.aclose()


def _session(worker: Worker) -> Session:
    return Session(worker.raw, queries.load())
