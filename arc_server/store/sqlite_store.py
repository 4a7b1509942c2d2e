"""The store in one SQLite file: WAL, synchronous=FULL, one writer with group commit.

Each method hands an operation of operations/*.py to a connection of the database and waits for it.
SQL is in sql/*.sql.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from arc_protocol.errors import ArcError, StoreUnavailable, Unavailable
from arc_protocol.lifecycle import ShownState
from arc_protocol.messages.agents import AgentRegistration
from arc_protocol.messages.base import CommandTarget, State
from arc_protocol.messages.events import EventsRequest
from arc_server.ports.meter import ServerMeter, StoreFigures
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import (
    DEFAULT_QUOTAS,
    AgentCursor,
    AgentKey,
    AgentPage,
    AgentPresence,
    BearerToken,
    CommandFilter,
    CommandPage,
    CommandRecord,
    CommandWithBodies,
    CommandWithResponse,
    Completion,
    Created,
    Credential,
    Deployment,
    EnrolToken,
    Epoch,
    EventPage,
    Granted,
    Holder,
    KnownKey,
    KnownSecret,
    LeasedResponse,
    LeaseQuery,
    ListMark,
    NewCommand,
    NewCredential,
    PastLease,
    Purged,
    PushCircuit,
    PushLease,
    Quotas,
    Renewal,
    StoredBody,
    StoredResponse,
    StripMark,
    Stripped,
    TokenSecret,
)
from arc_server.store.engine import faults, schema
from arc_server.store.engine.database import BUSY_TIMEOUT_SECONDS, MAX_BATCH, Database
from arc_server.store.engine.ended_journal import JOURNAL, EndedJournal, EndedRecord
from arc_server.store.engine.rows import micros
from arc_server.store.engine.session import StoreSession
from arc_server.store.engine.snapshots import write_snapshot
from arc_server.store.operations import (
    agents,
    complete,
    create,
    credentials,
    deployments,
    epochs,
    events,
    figures,
    lease,
    pushes,
    quotas,
    read,
    retention,
    search,
    sweeps,
    targets,
    transitions,
)


class SqliteStore:
    """SqliteStore fulfils `ports.store.Store`, whose parts say what each method does."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._journal = EndedJournal(database.path.with_name(JOURNAL))
        self._write = database.writes.submit
        self._read = database.reads.submit
        self._list = database.lists.submit

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS,
        max_batch: int = MAX_BATCH,
    ) -> SqliteStore:
        """Open a database as the only process that does; make it, or bring its schema up to date.

        Raises StoreRefused (StoreLocked, StoreCorrupt, StoreTooNew); nothing was touched then.
        """
        database = await Database.open(
            path,
            busy_timeout_seconds=busy_timeout_seconds,
            max_batch=max_batch,
        )
        try:
            store = cls(database)
            await store._write_journal(await database.reads.submit(credentials.ended))
        except BaseException:
            await database.close()
            raise
        return store

    async def wait_failed(self) -> str:
        """Wait until the database has failed for good, and return why."""
        return await self.database.wait_failed()

    async def check(self) -> None:
        self.database.check()
        if await self._read(read.schema_version) != schema.newest():
            raise StoreUnavailable("the schema of the database is not this release's")

    async def snapshot(self) -> str:
        try:
            return str(await asyncio.to_thread(write_snapshot, self.database.path))
        except OSError as error:
            raise Unavailable(f"no snapshot of the database: {error.strerror}") from None
        except sqlite3.Error as error:
            reason = f"no snapshot of the database: {faults.for_callers(error).message}"
            raise StoreUnavailable(reason) from error

    async def checkpoint(self) -> None:
        await self._write(read.want_checkpoint)

    async def reusable_bytes(self) -> int:
        return await self._read(read.reusable_bytes)

    async def begin_metering(self, meter: ServerMeter) -> None:
        """Let a meter count from now on. Raises StoreUnavailable."""
        await self._write(figures.begin_metering, meter)

    async def figures(self) -> StoreFigures:
        """Return figures of the database that no meter can count. Raises StoreUnavailable."""
        return await self._list(figures.read)

    async def recount_usage(self, deployment_id: str) -> None:
        await self._write(quotas.recount, deployment_id)

    async def close(self) -> None:
        await self.database.close()

    # commands

    async def create(self, new: NewCommand) -> Created:
        return await self._write(create.create, new, queue=new.deployment_id)

    async def mark_uploaded(
        self,
        command_id: str,
        params: StoredBody,
        now: datetime,
        push_lease: PushLease | None = None,
    ) -> CommandRecord:
        outcome = await self._write(create.mark_uploaded, command_id, params, now, push_lease)
        if isinstance(outcome, ArcError):
            raise outcome
        return outcome

    async def mark_arrived(self, command_id: str, size: int) -> bool:
        return await self._write(create.mark_arrived, command_id, size)

    async def upload_room(self, deployment_id: str, most: Quotas) -> int:
        return await self._read(quotas.upload_room, deployment_id, most)

    async def get(self, command_id: str) -> CommandWithResponse | None:
        return await self._read(read.get, command_id)

    async def get_with_bodies(self, command_id: str) -> CommandWithBodies | None:
        return await self._read(read.get_with_bodies, command_id)

    async def write_payload(
        self, command_id: str, params: StoredBody | None, response: StoredResponse | None
    ) -> None:
        await self._write(complete.write_payload, command_id, params, response)

    async def lease(self, query: LeaseQuery, now: datetime) -> Granted:
        return await self._in_passes(
            lambda: self._write(lease.lease, query, now, queue=query.deployment_id)
        )

    async def lease_push(
        self,
        lease_ids: Sequence[str],
        lease_seconds: float,
        now: datetime,
        *,
        rooms: Mapping[str, int] | None = None,
        per_deployment: int | None = None,
        sending: Mapping[str, int] | None = None,
    ) -> Granted:
        return await self._in_passes(
            lambda: self._write(
                lease.lease_push, lease_ids, lease_seconds, now, rooms, per_deployment, sending
            )
        )

    async def _in_passes(self, go: Callable[[], asyncio.Future[lease.Pass]]) -> Granted:
        """Go over a queue again while a pass was cut by what it ended, and granted nothing."""
        ended: list[CommandRecord] = []
        while True:
            granted, is_cut = await go()
            ended += granted.ended
            if granted.grants or not is_cut:
                return msgspec.structs.replace(granted, ended=ended)

    async def next_push_at(self, skipped: Collection[str] = ()) -> datetime | None:
        return await self._read(pushes.next_push_at, skipped)

    async def put_circuit(self, circuit: PushCircuit) -> None:
        await self._write(pushes.put_circuit, circuit)

    async def close_circuit(self, deployment_id: str) -> None:
        await self._write(pushes.close_circuit, deployment_id)

    async def list_circuits(self) -> Sequence[PushCircuit]:
        return await self._list(pushes.list_circuits)

    async def list_pushed(self) -> Sequence[str]:
        return await self._list(pushes.list_pushed)

    async def renew(
        self,
        lease_ids: Sequence[str],
        lease_seconds: float,
        now: datetime,
        within: Reach = EVERYTHING,
    ) -> Renewal:
        return await self._write(
            lease.renew, lease_ids, lease_seconds, now, within, queue=_queue_of(within)
        )

    async def release(
        self,
        lease_id: str,
        now: datetime,
        *,
        costs_attempt: bool,
        within: Reach = EVERYTHING,
        push_after: datetime | None = None,
    ) -> CommandRecord:
        return await self._write(
            lease.release,
            lease_id,
            now,
            costs_attempt,
            within,
            push_after,
            queue=_queue_of(within),
        )

    async def complete(
        self,
        command_id: str,
        lease_id: str | None,
        response: StoredResponse,
        now: datetime,
        within: Reach = EVERYTHING,
    ) -> Completion:
        return await self._write(
            complete.complete,
            command_id,
            lease_id,
            response,
            now,
            within,
            queue=_queue_of(within),
        )

    async def complete_all(
        self, submissions: Sequence[LeasedResponse], now: datetime, within: Reach = EVERYTHING
    ) -> Sequence[Completion | ArcError]:
        return await self._write(
            complete.complete_all, submissions, now, within, queue=_queue_of(within)
        )

    async def add_events(
        self,
        command_id: str,
        request: EventsRequest,
        now: datetime,
        keep: int,
        quotas: Quotas = DEFAULT_QUOTAS,
        within: Reach = EVERYTHING,
    ) -> CommandRecord:
        added = (command_id, request, now, keep, quotas, within)
        return await self._write(events.add, *added, queue=_queue_of(within))

    async def events(self, command_id: str, after: int, limit: int) -> EventPage | None:
        return await self._list(events.read, command_id, after, limit)

    async def cancel(self, command_id: str, now: datetime, by: str | None = None) -> Completion:
        return await self._write(complete.cancel, command_id, now, by)

    async def list(self, which: CommandFilter, before: ListMark | None, limit: int) -> CommandPage:
        return await self._list(search.list_commands, which, before, limit)

    async def count(
        self, deployment_id: str | None, within: Reach = EVERYTHING
    ) -> Mapping[ShownState, int]:
        return await self._list(search.count, deployment_id, within)

    async def past_leases(self, command_id: str) -> Sequence[PastLease]:
        return await self._read(read.past_leases, command_id)

    # time

    async def expire_due(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        return await self._write(sweeps.expire_due, now, limit)

    async def requeue_lapsed(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        return await self._write(sweeps.requeue_lapsed, now, limit)

    async def release_delayed(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        return await self._write(sweeps.release_delayed, now, limit)

    async def forget_idempotency_keys(self, before: datetime, limit: int) -> int:
        return await self._write(sweeps.forget_keys, before, limit)

    async def shift_leases(self, seconds: float) -> int:
        return await self._write(sweeps.shift_leases, seconds)

    async def grant_grace(self, lapsed_since: datetime, now: datetime, until: datetime) -> int:
        return await self._write(transitions.grant_grace, lapsed_since, now, until)

    async def epoch(self) -> Epoch:
        return await self._read(epochs.epoch)

    async def begin_epoch(
        self, now: datetime, *, freeze_seconds: float, unknown_key_seconds: float
    ) -> Epoch:
        epoch = await self._read(epochs.epoch)
        if not epochs.is_to_begin(epoch):
            return epoch
        return await self._write(epochs.begin, now, freeze_seconds, unknown_key_seconds)

    async def sign_of_life(self, now: datetime) -> None:
        await self._write(sweeps.sign_of_life, now)

    async def last_sign_of_life(self) -> datetime | None:
        return await self._read(sweeps.last_sign_of_life)

    async def has_live_leases(self) -> bool:
        return await self._read(sweeps.has_live_leases)

    # retention

    async def fail_abandoned_uploads(
        self, before: datetime, now: datetime, limit: int
    ) -> Sequence[CommandRecord]:
        return await self._write(retention.fail_abandoned_uploads, before, now, limit)

    async def left_uploads(self, limit: int) -> Sequence[str]:
        return await self._read(retention.left_uploads, limit)

    async def forget_uploads(self, command_ids: Sequence[str]) -> None:
        await self._write(retention.forget_uploads, command_ids)

    async def purge_commands(
        self, state: State, ended_before: datetime, keys_before: datetime, limit: int
    ) -> Purged:
        return await self._write(retention.purge_commands, state, ended_before, keys_before, limit)

    async def strip_bodies(
        self, state: State, since: StripMark, ended_before: datetime, limit: int
    ) -> Stripped:
        return await self._write(retention.strip_bodies, state, since, ended_before, limit)

    async def strip_events(
        self, state: State, since: StripMark, ended_before: datetime, limit: int
    ) -> Stripped:
        return await self._write(retention.strip_events, state, since, ended_before, limit)

    async def purge_agents(self, before: datetime, limit: int) -> int:
        return await self._write(retention.purge_agents, before, limit)

    async def purge_tokens(self, before: datetime, limit: int) -> int:
        purged = await self._write(retention.purge_tokens, before, limit)
        if not purged:  # all that the journal may forget is forgotten by the database
            await self._use_journal(self._journal.forget, micros(before))
        return purged

    async def delete_command(self, command_id: str) -> bool:
        return await self._write(retention.delete_command, command_id)

    async def remove_agent(self, deployment_id: str, agent_id: str) -> bool:
        return await self._write(retention.remove_agent, deployment_id, agent_id)

    async def remove_deployment(self, deployment_id: str, now: datetime) -> bool:
        return await self._write(retention.remove_deployment, deployment_id, now)

    # deployments, agents, tokens

    async def put_deployment(self, deployment: Deployment, now: datetime) -> None:
        await self._write(deployments.put_deployment, deployment, now)

    async def get_deployment(self, deployment_id: str) -> Deployment | None:
        return await self._read(deployments.get_deployment, deployment_id)

    async def set_push(
        self,
        deployment_id: str,
        push_url: str | None,
        push_token: str | None,
        now: datetime,
        by: str | None = None,
    ) -> bool:
        return await self._write(deployments.set_push, deployment_id, push_url, push_token, now, by)

    async def seal_push_token(self, deployment_id: str, former: str, sealed: str) -> None:
        await self._write(deployments.seal_push_token, deployment_id, former, sealed)

    async def list_deployments(self) -> Sequence[Deployment]:
        return await self._list(deployments.list_deployments)

    async def register(
        self, deployment_id: str, target: CommandTarget | None, now: datetime
    ) -> None:
        await self._write(targets.register, deployment_id, target, micros(now))

    async def remove_target(self, deployment_id: str, resource_id: str) -> bool:
        return await self._write(targets.remove_target, deployment_id, resource_id)

    async def put_agent(
        self,
        agent_id: str,
        registration: AgentRegistration,
        now: datetime,
        credential: str | None = None,
        quotas: Quotas | None = None,
    ) -> AgentPresence:
        return await self._write(
            agents.put_agent,
            agent_id,
            registration,
            now,
            credential,
            quotas,
            queue=registration.deployment_id,
        )

    async def touch_agents(self, seen: Mapping[Holder, datetime]) -> None:
        await self._write(agents.touch_agents, seen)

    async def list_agents(
        self,
        deployment_id: str | None,
        seen_since: datetime,
        limit: int,
        *,
        with_schemas: bool = False,
        behind: AgentCursor | None = None,
    ) -> AgentPage:
        return await self._list(
            agents.list_agents, deployment_id, seen_since, limit, with_schemas, behind
        )

    async def latest_agents(self, deployment_id: str, limit: int) -> Sequence[AgentPresence]:
        return await self._list(agents.latest_agents, deployment_id, limit)

    async def put_token(self, token: BearerToken, secret: TokenSecret) -> None:
        await self._write(credentials.put_token, token, secret)

    async def find_token(self, token_hash: bytes) -> KnownSecret | None:
        return await self._read(credentials.find_token, token_hash)

    async def rotate_token(self, secret: TokenSecret, older_end_at: datetime) -> BearerToken | None:
        token = await self._write(credentials.rotate_token, secret, older_end_at)
        if token is not None and token.revoked_at is None:
            at, end = micros(secret.created_at), micros(older_end_at)
            line = EndedRecord("secret", secret.token_hash.hex(), at, secret.token_id, end)
            await self._write_journal([line])
        return token

    async def use_tokens(self, used: Mapping[str, datetime]) -> None:
        await self._write(credentials.use_tokens, used)

    async def list_tokens(self) -> Sequence[BearerToken]:
        return await self._list(credentials.list_tokens)

    async def revoke_token(self, token_id: str, now: datetime) -> bool:
        return await self._end("token", token_id, now, credentials.revoke_token)

    # credentials of agents

    async def put_enrol_token(self, token: EnrolToken) -> None:
        await self._write(credentials.put_enrol_token, token)

    async def find_enrol_token(self, token_hash: bytes) -> EnrolToken | None:
        return await self._read(credentials.find_enrol_token, token_hash)

    async def list_enrol_tokens(self) -> Sequence[EnrolToken]:
        return await self._list(credentials.list_enrol_tokens)

    async def revoke_enrol_token(self, token_id: str, now: datetime) -> bool:
        return await self._end("enrol-token", token_id, now, credentials.revoke_enrol_token)

    async def enrol(self, token_hash: bytes, new: NewCredential, now: datetime) -> KnownKey:
        known = await self._write(credentials.enrol, token_hash, new, now)
        made = known.credential
        at = micros(made.enrolled_at)
        until = await self._read(credentials.expiry, "enrol-token", made.enrol_token_id)
        await self._write_journal(
            [EndedRecord("enrolled", made.credential_id, at, made.enrol_token_id, until=until)]
        )
        return known

    async def find_key(self, key_id: str) -> KnownKey | None:
        return await self._read(credentials.find_key, key_id)

    async def add_key(self, new: AgentKey, signed_by: str, now: datetime) -> KnownKey:
        return await self._write(credentials.add_key, new, signed_by, now)

    async def use_key(self, key_id: str, now: datetime, older_end_at: datetime) -> None:
        line = await self._write(credentials.use_key, key_id, now, older_end_at)
        if line is not None:
            await self._write_journal([line])

    async def find_credential(self, credential_id: str) -> Credential | None:
        return await self._read(credentials.find_credential, credential_id)

    async def list_credentials(self) -> Sequence[Credential]:
        return await self._list(credentials.list_credentials)

    async def revoke_credential(self, credential_id: str, now: datetime) -> bool:
        return await self._end("credential", credential_id, now, credentials.revoke_credential)

    async def revocations(self) -> int:
        return await self._read(credentials.revocations)

    async def revoked_ids(self) -> frozenset[str]:
        return await self._list(credentials.revoked_ids)

    async def requeue_revoked(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        return await self._write(sweeps.requeue_revoked, now, limit)

    async def _end(
        self,
        kind: str,
        id_: str,
        now: datetime,
        revoke: Callable[[StoreSession, str, datetime], bool],
    ) -> bool:
        """Revoke, and see to it that a restore does not undo it."""
        is_there = await self._write(revoke, id_, now)
        if is_there:
            until = await self._read(credentials.expiry, kind, id_)
            await self._write_journal([EndedRecord(kind, id_, micros(now), until=until)])
        return is_there

    async def _write_journal(self, lines: Sequence[EndedRecord]) -> None:
        """Add to the journal, durably. Raises StoreUnavailable."""
        await self._use_journal(self._journal.add, lines)

    async def _use_journal(self, use: Callable[[Any], None], given: object) -> None:
        try:
            await asyncio.to_thread(use, given)
        except OSError as error:
            raise StoreUnavailable(f"{JOURNAL}: {error.strerror}") from None


def _queue_of(within: Reach) -> str:
    """Return the queue for writes of a caller: its deployment's, or else its own."""
    return within.deployment() or within.credential or ""
