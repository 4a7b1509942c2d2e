"""Random kills end a server under load; the checker judges what the clients saw."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import aiohttp

from tests.chaos.checker import Violation, check
from tests.chaos.data_directory_audit import audit
from tests.chaos.history import History
from tests.chaos.killed_server import KilledServer
from tests.chaos.load import Load
from tests.support.processes import let_real_time_pass

SENDERS, HOLDERS, READERS = 4, 4, 2


class Verdict(NamedTuple):
    """What a run came to."""

    violations: list[Violation]
    audit: list[str]
    history: History
    seed: int
    said: list[str]
    """What the servers have logged."""

    @property
    def is_good(self) -> bool:
        """No promise was broken."""
        return not self.violations and not self.audit

    def complaint(self) -> str:
        """Return a report of what is wrong, the stories of these commands, and the logs."""
        about = {violation.about for violation in self.violations}
        stories = [line for each in sorted(about) for line in self.history.about(each)]
        problems = [*map(str, self.violations), *self.audit]
        return "\n".join([*problems, *stories, *self.said, self.summary()])

    def summary(self) -> str:
        """Counts for people."""
        events = self.history.events
        commands = {
            event.answer["id"] for event in events if event.kind == "create" and event.answer
        }
        unknown = sum(event.outcome == "unknown" for event in events)
        return (
            f"{len(events)} requests, {unknown} of them without an answer, {len(commands)} commands"
            f" (CHAOS_SEED={self.seed})"
        )


async def kill_at_random(kills: int, directory: Path) -> Verdict:
    """Kill a server under load that many times; then everything ends, and is looked at."""

    async def kill(server: KilledServer, load: Load, source: random.Random) -> None:
        for _ in range(kills):
            await server.start()
            await load.more_events(source.randint(5, 80))
            await let_real_time_pass(source.uniform(0, 0.01))
            await server.kill()

    return await under_load(kill, directory)


async def kill_at_failpoint(name: str, directory: Path) -> Verdict:
    """Run with one death, at the N-th passing of a failpoint."""

    async def kill(server: KilledServer, load: Load, source: random.Random) -> None:
        await server.start({"ARC_FAILPOINT": f"{name}=kill@{source.randint(5, 20)}"})
        await server.died()

    return await under_load(kill, directory)


async def under_load(
    kill: Callable[[KilledServer, Load, random.Random], Awaitable[None]], directory: Path
) -> Verdict:
    """Load while `kill` does what it does to a server; it is down then, and started once more."""
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 32))
    source = random.Random(seed)
    server = KilledServer(directory)
    timeout = aiohttp.ClientTimeout(total=60)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            load = Load(server, session, source)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(load.run(SENDERS, HOLDERS, READERS))
                await kill(server, load, source)
                await server.start()
                await load.more_events(20)
                load.is_ending.set()
                await running
            await load.look_at_everything()
            await server.stop()
    finally:
        await server.put_away()
    load.history.save(directory / "history.jsonl")
    return Verdict(
        violations=check(load.history.events),
        audit=audit(server.data_dir),
        history=load.history,
        seed=seed,
        said=server.said,
    )
