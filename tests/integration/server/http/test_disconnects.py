"""Clients that go away: nothing is leased for them, and what they could not hear goes back."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from tests.support.running_server import OWN, Client, inline, until


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
    wakeups = client.server.parts.wakeups
    caller = Caller(client).ask("POST", "/v1/commands/leases", LEASE)
    await until(lambda: wakeups.waiting_for_work == 1)

    caller.hang_up(rudely=rudely)

    await until(lambda: wakeups.waiting_for_work == 0)
    command_id = await client.create()
    assert (await client.status(command_id))["state"] == "PENDING"
    await goes_back_at_no_cost(client, command_id)


async def test_one_of_two_waiters_goes_and_the_other_gets_the_command(client: Client) -> None:
    wakeups = client.server.parts.wakeups
    gone = Caller(client).ask("POST", "/v1/commands/leases", LEASE)
    await until(lambda: wakeups.waiting_for_work == 1)
    waiting = asyncio.create_task(client.lease(waitSeconds=60))
    await until(lambda: wakeups.waiting_for_work == 2)

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
    service = client.server.parts.service
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
    ids = {await client.create(params=params) for _ in range(100)}
    caller = Caller(client)
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    caller.ask("POST", "/v1/commands/leases", {"deploymentId": OWN, "maxLeases": 100})
    await until(lambda: is_in_state(client, max(ids), "DISPATCHED"))
    await asyncio.to_thread(caller.socket.recv, 1000)
    caller.hang_up()

    for command_id in ids:
        await until(lambda command_id=command_id: is_in_state(client, command_id, "PENDING"))
    leases = await client.lease(maxLeases=100)
    assert {lease["commandId"] for lease in leases} == ids
    assert {lease["attempt"] for lease in leases} == {1}


async def test_a_sender_that_is_gone_waits_for_nothing(client: Client) -> None:
    wakeups = client.server.parts.wakeups
    command_id = await client.create()
    caller = Caller(client).ask("GET", f"/v1/commands/{command_id}?waitSeconds=60")
    await until(lambda: wakeups.waiting_for_results == 1)

    caller.hang_up()

    await until(lambda: wakeups.waiting_for_results == 0)


async def test_a_create_whose_sender_hangs_up_is_stored_and_announced_all_the_same(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = client.server.parts.store
    real, begun, go_on = store.create, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await real(*args)

    monkeypatch.setattr(store, "create", slow)
    waiting = asyncio.create_task(client.lease(waitSeconds=60))
    await until(lambda: client.server.parts.wakeups.waiting_for_work == 1)
    body = {"deploymentId": OWN, "command": "report", "params": inline(b"{}")}
    caller = Caller(client).ask("POST", "/v1/commands", body)
    await begun.wait()

    caller.hang_up()
    await until(lambda: client.server.http.open_connections == 1)
    go_on.set()

    (lease,) = await waiting
    assert (await client.status(lease["commandId"]))["state"] == "DISPATCHED"


async def test_a_response_whose_holder_hangs_up_is_stored_and_announced_all_the_same(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = client.server.parts.store
    real, begun, go_on = store.complete, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await real(*args)

    monkeypatch.setattr(store, "complete", slow)
    command_id = await client.create()
    await client.lease()
    path = f"/v1/commands/{command_id}"
    waiting = asyncio.create_task(client.call("GET", f"{path}?waitSeconds=60"))
    await until(lambda: client.server.parts.wakeups.waiting_for_results == 1)
    body = {"status": "success", "response": inline(b"1")}
    caller = Caller(client).ask("PUT", f"{path}/response", body)
    await begun.wait()

    caller.hang_up()
    await until(lambda: client.server.http.open_connections == 1)
    go_on.set()

    assert (await waiting).json["state"] == "SUCCEEDED"
