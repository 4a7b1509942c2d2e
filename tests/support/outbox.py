"""The loop that pushes, in a world of its own, and a dispatcher that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import ErrorResponse
from arc_protocol.messages.leases import Envelope
from arc_server.ports.pushes import Dispatcher
from arc_server.ports.records import Deployment, PushOutcome
from arc_server.push.outbox import PushLimits
from tests.support.push_target import local_dispatcher
from tests.support.service_world import World

QUICK = PushLimits(
    timeout_seconds=5,
    backoff_base_seconds=0.001,
    backoff_cap_seconds=0.002,
    retry_store_seconds=0.001,
)


@asynccontextmanager
async def outbox_of(
    world: World, limits: PushLimits = QUICK, dispatcher: Dispatcher | None = None
) -> AsyncGenerator[asyncio.Task[None]]:
    """The loop that pushes, at work."""
    used = dispatcher or local_dispatcher(limits.timeout_seconds)
    task = asyncio.ensure_future(world.outbox(used, limits).run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await used.close()


def lease_in(envelope: Envelope) -> str:
    return envelope.response_handling.submit_response_url.rpartition("lease=")[2]


async def end_of(world: World, command_id: str) -> State:
    return (await asyncio.wait_for(world.status(command_id, wait=30), 30)).state


async def code_of(world: World, command_id: str) -> tuple[str, str]:
    response = (await world.status(command_id)).response
    assert isinstance(response, ErrorResponse)
    return response.code, response.message


class Scripted:
    """A dispatcher that does as it is told."""

    def __init__(self, *outcomes: PushOutcome | Exception) -> None:
        self.outcomes = list(outcomes)
        self.pushed: list[Envelope] = []

    async def push(self, deployment: Deployment, envelope: Envelope) -> PushOutcome:
        self.pushed.append(envelope)
        outcome = self.outcomes[0] if len(self.outcomes) == 1 else self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self) -> None:
        pass


ACCEPTED = PushOutcome(accepted=True)
REJECTED = PushOutcome(accepted=False, is_definite=True, reason="no")
POSTPONED = PushOutcome(accepted=False, reason="later")
