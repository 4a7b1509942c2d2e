"""Clients that go away: nothing is leased for them, and what they could not hear goes back."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.running_server import OWN, Client, inline, success
from tests.support.waiting import until


class Caller:
    """A client that sends one request and hangs up when it likes."""

    def __init__(self, client: Client) -> None:
        host, _, port = client.server.url.removeprefix("http://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.token = client.token

    def ask(self, method: str, path: str, body: Any = None) -> Caller:
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: arc.example\r\n"
            f"Authorization: Bearer {self.token}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self.socket.sendall(head.encode() + data)
        return self

    def hang_up(self, *, rudely: bool = False) -> None:
        if rudely:  # a reset instead of a goodbye
            self.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
        self.socket.close()


LEASE = {"deploymentId": OWN, "waitSeconds": 60}


async def goes_back_at_no_cost(client: Client, command_id: str) -> None:
    """The command is ready again, in the attempt that it was in."""
    await until(lambda: is_in_state(client, command_id, "PENDING"))
    (lease,) = await client.lease()
    assert (lease["commandId"], lease["attempt"]) == (command_id, 1)


async def is_in_state(client: Client, command_id: str, state: str) -> bool:
    return (await client.status(command_id))["state"] == state


@pytest.mark.parametrize("rudely", [False, True])
async def test_a_waiter_that_is_gone_leases_nothing(client: Client, rudely: bool) -> None:
    announcements = client.server.parts.services.announcements
    caller = Caller(client).ask("POST", "/v1/commands/leases", LEASE)
    await until(lambda: announcements.work.count == 1)

    caller.hang_up(rudely=rudely)

    await until(lambda: announcements.work.count == 0)
    command_id = await client.create()
    assert (await client.status(command_id))["state"] == "PENDING"
    await goes_back_at_no_cost(client, command_id)


async def test_one_of_two_waiters_goes_and_the_other_gets_the_command(client: Client) -> None:
    announcements = client.server.parts.services.announcements
    gone = Caller(client).ask("POST", "/v1/commands/leases", LEASE)
    await until(lambda: announcements.work.count == 1)
    waiting = asyncio.create_task(client.lease(waitSeconds=60))
    await until(lambda: announcements.work.count == 2)

    gone.hang_up()
    command_id = await client.create()

    (lease,) = await waiting
    assert (lease["commandId"], lease["attempt"]) == (command_id, 1)


async def test_a_lease_granted_while_its_holder_hangs_up_goes_back(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = client.server.parts.store
    command_id = await client.create()
    real, granted, answer = store.lease, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        result = await real(*args)
        granted.set()
        await answer.wait()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(store, "lease", slow)
        caller = Caller(client).ask("POST", "/v1/commands/leases", LEASE)
        await granted.wait()
        caller.hang_up()
        await until(lambda: client.server.http.open_connections == 1)
        answer.set()

    await goes_back_at_no_cost(client, command_id)


@pytest.mark.parametrize("rudely", [False, True])
async def test_a_goodbye_that_the_event_loop_has_not_seen_yet_is_heard_before_the_answer(
    client: Client, monkeypatch: pytest.MonkeyPatch, rudely: bool
) -> None:
    service = client.server.parts.services.leases
    command_id = await client.create()
    real = service.lease
    caller = Caller(client)

    async def hanging_up(*args: Any, **kwargs: Any) -> Any:
        result = await real(*args, **kwargs)
        caller.hang_up(rudely=rudely)  # and nothing awaited after it
        return result

    with monkeypatch.context() as patch:
        patch.setattr(service, "lease", hanging_up)
        caller.ask("POST", "/v1/commands/leases", LEASE)
        await until(lambda: caller.socket.fileno() < 0)

    await goes_back_at_no_cost(client, command_id)


async def test_leases_whose_holder_stops_reading_and_goes_all_go_back(client: Client) -> None:
    params = inline(b"x" * 149_000)
    ids = {await client.create(params=params) for _ in range(50)}
    caller = Caller(client)
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    caller.ask("POST", "/v1/commands/leases", {"deploymentId": OWN, "maxLeases": 50})
    await until(lambda: is_in_state(client, max(ids), "DISPATCHED"))
    await asyncio.to_thread(caller.socket.recv, 1000)
    caller.hang_up()

    for command_id in ids:
        await until(lambda command_id=command_id: is_in_state(client, command_id, "PENDING"))
    leases = await client.lease(maxLeases=50)
    assert {lease["commandId"] for lease in leases} == ids
    assert {lease["attempt"] for lease in leases} == {1}


async def test_a_sender_that_is_gone_waits_for_nothing(client: Client) -> None:
    announcements = client.server.parts.services.announcements
    command_id = await client.create()
    caller = Caller(client).ask("GET", f"/v1/commands/{command_id}?waitSeconds=60")
    await until(lambda: announcements.results.count == 1)

    caller.hang_up()

    await until(lambda: announcements.results.count == 0)


class HeldUp:
    """A method of the store that waits, before its work, until it is let go on."""

    def __init__(self, client: Client, method: str) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        real = getattr(client.server.parts.store, method)

        async def held_up(*args: Any, **kwargs: Any) -> Any:
            self.begun.set()
            await self.go_on.wait()
            return await real(*args, **kwargs)

        self.call = held_up


Write = Callable[[dict[str, Any]], tuple[str, str, Any]]
"""A request that writes, made of a lease."""

WRITES: dict[str, Write] = {
    "create": lambda _: (
        "POST",
        "/v1/commands",
        {"deploymentId": OWN, "command": "report", "params": inline(b"{}")},
    ),
    "complete": lambda lease: ("PUT", f"/v1/commands/{lease['commandId']}/response", success()),
    "complete_all": lambda lease: (
        "POST",
        "/v1/commands/leases/respond",
        {
            "responses": [
                {
                    "commandId": lease["commandId"],
                    "leaseId": lease["leaseId"],
                    "response": success(),
                }
            ]
        },
    ),
    "release": lambda lease: ("POST", f"/v1/commands/leases/{lease['leaseId']}/release", None),
    "renew": lambda lease: ("POST", "/v1/commands/leases/renew", {"leaseIds": [lease["leaseId"]]}),
    "cancel": lambda lease: ("POST", f"/v1/commands/{lease['commandId']}/cancel", None),
    "add_events": lambda lease: (
        "POST",
        f"/v1/commands/{lease['commandId']}/events",
        {
            "leaseId": lease["leaseId"],
            "lines": [{"number": 1, "at": "2026-11-24T10:00:00Z", "level": "info", "message": "x"}],
        },
    ),
    "put_agent": lambda _: (
        "PUT",
        "/v1/agents/boot-9",
        {"deploymentId": OWN, "version": "1", "hostname": "h", "handlers": []},
    ),
}


async def has_happened(client: Client, method: str, lease: dict[str, Any]) -> bool:
    """Return True if the write is there to be read, and announced where agents wait for it."""
    status = await client.status(lease["commandId"])
    match method:
        case "create" | "release":  # a poll that waits gets the command
            return True
        case "complete" | "complete_all":
            return status["state"] == "SUCCEEDED"
        case "cancel":
            return status["cancelRequested"]
        case "add_events":
            path = f"/v1/commands/{lease['commandId']}/events"
            return len((await client.call("GET", path)).json["lines"]) == 1
        case "put_agent":
            agents = (await client.call("GET", "/v1/agents")).json["agents"]
            return [agent["agentId"] for agent in agents] == ["boot-9"]
    return True


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("rudely", [False, True])
async def test_a_write_goes_through_and_is_announced_though_its_client_hangs_up(
    client: Client, monkeypatch: pytest.MonkeyPatch, method: str, rudely: bool
) -> None:
    announcements = client.server.parts.services.announcements
    await client.create()
    (lease,) = await client.lease()
    polling = asyncio.create_task(client.lease(waitSeconds=60))
    path = f"/v1/commands/{lease['commandId']}"
    waiting = asyncio.create_task(client.call("GET", f"{path}?waitSeconds=60"))
    await until(lambda: announcements.work.count == announcements.results.count == 1)
    held_up = HeldUp(client, method)
    with monkeypatch.context() as patch:
        patch.setattr(client.server.parts.store, method, held_up.call)
        caller = Caller(client).ask(*WRITES[method](lease))
        await held_up.begun.wait()

        caller.hang_up(rudely=rudely)
        await until(lambda: client.server.http.open_connections == 2)
        held_up.go_on.set()
        await until(lambda: client.server.http.unanswered == 0)

    assert await has_happened(client, method, lease)
    if method in {"create", "release"}:
        assert len(await polling) == 1
    if method in {"complete", "complete_all"}:
        assert (await waiting).json["state"] == "SUCCEEDED"
    polling.cancel()
    waiting.cancel()
