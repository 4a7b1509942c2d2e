"""A server without HTTP: the services and their loops on a real store and a clock moved by hand."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from arc_protocol.messages.base import CommandTarget, ResourceType
from arc_protocol.messages.bodies import (
    BodySpec,
    ErrorResponse,
    InlineBody,
    StorageBody,
    SuccessResponse,
)
from arc_protocol.messages.commands import (
    CommandStatus,
    CreateCommandRequest,
    CreateCommandResponse,
)
from arc_protocol.messages.leases import (
    LeaseInfo,
    LeaseRequest,
    LeaseResponse,
    RenewRequest,
    RenewResponse,
)
from arc_server.ports.pushes import Dispatcher
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import Deployment
from arc_server.push.outbox import Outbox, PushLimits
from arc_server.service.limits import CommandLimits
from arc_server.service.retention import Retention, RetentionLimits
from arc_server.service.services import build_services
from arc_server.service.sweeper import Sweeper, SweepLimits
from arc_server.service.waits import Wait
from tests.support.clocks import ServerClock
from tests.support.service_fakes import FlakyStore, Links, MemoryBlobs
from tests.support.waiting import settle

BASE = "https://arc.test/v1"
SMALL_LIMITS = CommandLimits(inline_bytes=1_000, max_blob_bytes=1_000_000)


def daemon(resource_id: str) -> CommandTarget:
    return CommandTarget(resource_id=resource_id, resource_type=ResourceType.DAEMON)


def success(data: bytes = b'{"ok":true}') -> SuccessResponse:
    return SuccessResponse(response=InlineBody.of(data))


def error(code: str = "HANDLER_ERROR", message: str = "it broke") -> ErrorResponse:
    return ErrorResponse(code=code, message=message)


def inline_of(body: BodySpec) -> bytes:
    assert isinstance(body, InlineBody)
    return body.data()


def path_of(body: BodySpec) -> str:
    assert isinstance(body, StorageBody)
    assert body.storage_get_request is not None
    return body.storage_get_request.path


class World:
    """All parts of one server process. A second one on the same store is a restart."""

    def __init__(
        self,
        store: Any,
        *,
        clock: ServerClock | None = None,
        blobs: MemoryBlobs | None = None,
        limits: CommandLimits = SMALL_LIMITS,
        sweep: SweepLimits | None = None,
        retention: RetentionLimits | None = None,
        is_flaky: bool = True,
    ) -> None:
        self.raw_store = store
        self.store: Any = FlakyStore(store) if is_flaky else store
        self.clock = clock or ServerClock()
        self.blobs = blobs or MemoryBlobs()
        self.links = Links()
        self.limits = limits
        services = build_services(
            store=self.store, blobs=self.blobs, links=self.links, clock=self.clock, limits=limits
        )
        self.announcements = services.announcements
        self.envelopes = services.envelopes
        self.commands = services.commands
        self.search = services.search
        self.attempts = services.attempts
        self.leases = services.leases
        self.agents = services.agents
        self.sweep_limits = sweep or SweepLimits()
        self.sweeper = Sweeper(
            store=self.store,
            announcements=self.announcements,
            agents=self.agents,
            clock=self.clock,
            limits=self.sweep_limits,
        )

        self.retention_limits = retention or RetentionLimits(pause_seconds=0)
        self.retention = Retention(
            store=self.store,
            blobs=self.blobs,
            uploads=services.uploads,
            announcements=self.announcements,
            clock=self.clock,
            limits=self.retention_limits,
        )

    def restarted(self, **changed: Any) -> World:
        """The next process on the same database, blobs and clock."""
        kept = {
            "clock": self.clock,
            "blobs": self.blobs,
            "limits": self.limits,
            "sweep": self.sweep_limits,
            "retention": self.retention_limits,
        }
        return World(self.raw_store, **{**kept, **changed})

    def outbox(self, dispatcher: Dispatcher, limits: PushLimits | None = None) -> Outbox:
        return Outbox(
            store=self.store,
            envelopes=self.envelopes,
            announcements=self.announcements,
            dispatcher=dispatcher,
            clock=self.clock,
            limits=limits or PushLimits(),
            base_url=BASE,
        )

    async def pass_time(self, seconds: float, step: float = 4) -> None:
        """Let time pass as it does in a server that is up: with the sweeper at work."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.clock.advance(min(step, left))
            await self.sweeper.tick()

    async def quiet(self) -> None:
        """Wait until every task waits for something that a test brings about."""
        await settle()
        while self.store.busy:
            await asyncio.sleep(0.001)
            await settle()

    def close(self) -> None:
        self.announcements.close()

    # sender

    async def create(
        self,
        deployment_id: str = "d1",
        params: bytes | BodySpec = b"{}",
        *,
        command: str = "run",
        within: Reach = EVERYTHING,
        deadline_in: float | None = None,
        key: str | None = None,
        target: str | None = None,
        max_attempts: int | None = None,
        signature: str | None = None,
        **more: Any,
    ) -> CreateCommandResponse:
        body = InlineBody.of(params) if isinstance(params, bytes) else params
        deadline = None
        if deadline_in is not None:
            deadline = self.clock.now() + timedelta(seconds=deadline_in)
        request = CreateCommandRequest(
            deployment_id=deployment_id,
            command=command,
            params=body,
            deadline=deadline,
            idempotency_key=key,
            target_resource_id=target,
            max_attempts=max_attempts,
            signature=signature,
            **more,
        )
        return await self.commands.create(request, base_url=BASE, within=within)

    async def create_many(self, count: int, **options: Any) -> list[str]:
        """Create commands alike, and return their ids."""
        return [(await self.create(**options)).command_id for _ in range(count)]

    async def upload(self, size: int | None = None, **more: Any) -> CreateCommandResponse:
        return await self.create(params=StorageBody(size=size), **more)

    async def put(self, presigned: Any, data: bytes) -> None:
        """Upload, as a holder of a presigned PUT does."""
        assert presigned.operation == "put"

        async def chunks() -> Any:
            yield data

        await self.blobs.write(presigned.path, chunks(), len(data))

    async def status(
        self,
        command_id: str,
        wait: float = 0,
        *,
        known: str | None = None,
        hold: Wait | None = None,
        within: Reach = EVERYTHING,
    ) -> CommandStatus:
        return await self.commands.status(
            command_id,
            base_url=BASE,
            wait_seconds=wait,
            known_tag=known,
            wait=hold,
            within=within,
        )

    # holder

    async def poll(
        self,
        deployment_id: str = "d1",
        *,
        target: CommandTarget | None = None,
        count: int | None = None,
        seconds: int | None = None,
        wait: float | None = None,
        agent: str | None = None,
        user_agent: str = "",
        hold: Wait | None = None,
        within: Reach = EVERYTHING,
    ) -> LeaseResponse:
        request = LeaseRequest(
            deployment_id=deployment_id,
            target=target,
            max_leases=count,
            lease_seconds=seconds,
            wait_seconds=wait,
            agent_id=agent,
        )
        return await self.leases.lease(
            request, base_url=BASE, user_agent=user_agent, wait=hold, within=within
        )

    async def lease(self, deployment_id: str = "d1", **more: Any) -> LeaseInfo:
        """The one lease that there is to have."""
        (lease,) = (await self.poll(deployment_id, **more)).leases
        return lease

    async def renew(self, *lease_ids: str, seconds: int | None = None) -> RenewResponse:
        request = RenewRequest(lease_ids=list(lease_ids), lease_seconds=seconds)
        return await self.leases.renew(request)

    async def respond(self, lease: LeaseInfo, response: Any = None) -> None:
        await self.leases.submit_response(
            lease.command_id, response or success(), lease_id=lease.lease_id
        )

    # the operator

    async def push_to(self, url: str, deployment_id: str = "d1", token: str | None = "t0k") -> None:
        """Configure a deployment for push."""
        await self.raw_store.put_deployment(
            Deployment(deployment_id=deployment_id, targets=[], push_url=url, push_token=token),
            self.clock.now(),
        )
