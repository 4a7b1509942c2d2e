"""Waiting for the end of a command, by a clock that the test moves."""

from __future__ import annotations

import re
from typing import Any

import aiohttp
import pytest
from aioresponses import aioresponses

from arc_client import (
    AccessDenied,
    Client,
    CommandCancelled,
    CommandExpired,
    CommandFailed,
    CommandTimeout,
    ProgressCallbacks,
    ResultUnreadable,
    ServerUnreachable,
    TokenRefused,
)
from arc_protocol.errors import CommandNotFound
from arc_protocol.messages.commands import CommandStatus
from tests.support.client_fakes import created, error, status
from tests.support.clocks import SenderClock

STATUS = re.compile(r"^https://h/v1/commands/cmd_1(\?waitSeconds=\d+&waiting=\w+)?$")


def asked(http: aioresponses) -> list[str | None]:
    """The different `waitSeconds` of status requests, in the order of their first use."""
    return list(dict.fromkeys(url.query.get("waitSeconds") for _, url in http.requests))


def count(http: aioresponses) -> int:
    """Return how many requests there were."""
    return sum(map(len, http.requests.values()))


async def end_of(clock: SenderClock, timeout: float | None = 60.0) -> Any:
    """Wait for cmd_1, which is known to be there."""
    async with Client("https://h", clock=clock) as arc:
        return await arc.wait_for_end("cmd_1", timeout=timeout, is_known=True)


async def test_a_server_that_holds_the_request_is_asked_again_at_once(
    http: aioresponses, clock: SenderClock
) -> None:
    def hold(url: object, **_: Any) -> None:
        clock.advance(30)

    http.get(STATUS, payload=status("PENDING"), callback=hold)
    http.get(STATUS, payload=status("DISPATCHED"), callback=hold)
    http.get(STATUS, payload=status("SUCCEEDED", b"1"))

    found = await end_of(clock, timeout=100)

    assert found.state == "SUCCEEDED"
    assert clock.slept == []
    assert asked(http) == ["30"]


async def test_a_server_that_answers_early_is_asked_as_the_public_senders_ask(
    http: aioresponses, clock: SenderClock
) -> None:
    for _ in range(8):
        http.get(STATUS, payload=status("PENDING"))
    http.get(STATUS, payload=status("SUCCEEDED", b"1"))

    await end_of(clock)

    assert clock.slept == [0.5, 0.75, 1.125, 1.6875, 2.53125, 3.796875, 5.0, 5.0]


async def test_the_last_request_asks_for_no_longer_than_there_is_time(
    http: aioresponses, clock: SenderClock
) -> None:
    def hold(url: Any, **_: Any) -> None:
        clock.advance(float(url.query["waitSeconds"]))

    http.get(STATUS, payload=status("PENDING"), callback=hold, repeat=2)
    http.get(STATUS, payload=status("PENDING"), repeat=True)

    with pytest.raises(CommandTimeout):
        await end_of(clock, timeout=42.5)

    assert asked(http) == ["30", "12", None]
    assert clock.now == 1042.5


async def test_the_end_of_the_time_is_said_with_the_state_and_the_id(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, payload=status("DISPATCHED"), repeat=True)

    with pytest.raises(CommandTimeout, match="cmd_1 is still DISPATCHED after 1m") as raised:
        await end_of(clock)

    assert raised.value.command_id == "cmd_1"
    assert raised.value.state == "DISPATCHED"
    assert clock.now == 1060.0


async def test_a_status_that_is_terminal_at_the_very_end_counts(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, payload=status("PENDING"))
    http.get(STATUS, payload=status("SUCCEEDED", b"1"), callback=lambda *_, **__: clock.advance(60))

    assert (await end_of(clock)).state == "SUCCEEDED"


async def test_without_a_time_out_it_waits_as_long_as_it_takes(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(
        STATUS, payload=status("PENDING"), repeat=100, callback=lambda *_, **__: clock.advance(3600)
    )
    http.get(STATUS, payload=status("SUCCEEDED", b"1"))

    assert (await end_of(clock, timeout=None)).state == "SUCCEEDED"


@pytest.mark.parametrize(
    "failure",
    [
        {"exception": aiohttp.ServerDisconnectedError()},
        {"exception": TimeoutError()},
        {"status": 503, "body": error("UNAVAILABLE")},
        {"status": 500, "body": error("COMMANDS_ERROR")},
        {"status": 408},
        {"status": 429, "body": error("RATE_LIMITED")},
        {"status": 404, "body": "<html>no backend</html>"},
        {"status": 403, "body": "<html>blocked by the gateway</html>"},
        {"status": 200, "body": "<html>please log in</html>"},
        {"status": 200, "body": '{"commandId":"cmd_1"}'},
    ],
    ids=str,
)
async def test_a_poll_that_fails_in_passing_ends_nothing_while_there_is_time(
    http: aioresponses, clock: SenderClock, failure: dict[str, Any]
) -> None:
    http.get(STATUS, **failure)
    http.get(STATUS, **failure)
    http.get(STATUS, payload=status("SUCCEEDED", b"1"))

    assert (await end_of(clock)).state == "SUCCEEDED"
    assert clock.slept == [0.5, 0.75]


async def test_a_proxy_that_cuts_long_polls_off_slows_nothing_down(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, status=504, repeat=8, callback=lambda *_, **__: clock.advance(20))
    http.get(STATUS, payload=status("SUCCEEDED", b"1"))

    await end_of(clock, timeout=600)

    assert clock.slept == [0.5] * 8


async def test_a_busy_server_is_left_alone_for_as_long_as_it_says(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, status=429, body=error("RATE_LIMITED"), headers={"Retry-After": "12"})
    http.get(STATUS, payload=status("SUCCEEDED", b"1"))

    await end_of(clock)

    assert clock.slept == [12.0]


async def test_a_server_that_stays_away_ends_in_a_timeout_that_says_so(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, payload=status("DISPATCHED"))
    http.get(STATUS, exception=aiohttp.ServerDisconnectedError(), repeat=True)

    with pytest.raises(CommandTimeout, match="could not be asked at the end") as raised:
        await end_of(clock)

    assert raised.value.state == "DISPATCHED"
    assert isinstance(raised.value.__cause__, ServerUnreachable)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"status": 404, "body": error("COMMAND_NOT_FOUND")}, CommandNotFound),
        ({"status": 401, "body": error("UNAUTHORIZED")}, TokenRefused),
        ({"status": 403, "body": error("FORBIDDEN")}, AccessDenied),
    ],
)
async def test_what_the_server_itself_refuses_ends_the_wait(
    http: aioresponses, clock: SenderClock, answer: dict[str, Any], kind: type[Exception]
) -> None:
    http.get(STATUS, **answer)

    with pytest.raises(kind):
        await end_of(clock)

    assert count(http) == 1


async def test_a_command_that_was_never_seen_is_asked_for_no_longer_than_the_patience(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, exception=aiohttp.ServerDisconnectedError(), repeat=True)

    async with Client("https://h", clock=clock, retry_seconds=5) as arc:
        with pytest.raises(ServerUnreachable):
            await arc.wait("cmd_1", timeout=3600)

    assert clock.now <= 1005


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (status("EXPIRED"), CommandExpired, "COMMAND_EXPIRED"),
        (status("EXPIRED", b"1"), CommandExpired, "COMMAND_EXPIRED"),
        (status("FAILED"), CommandFailed, "UNKNOWN"),
        (status("SUCCEEDED"), ResultUnreadable, "RESULT_UNREADABLE"),
        (
            status("FAILED", response={"status": "error", "code": "E_DISK", "message": "full"}),
            CommandFailed,
            "E_DISK",
        ),
        (
            status("FAILED", response={"status": "error", "code": "CANCELLED", "message": "m"}),
            CommandCancelled,
            "CANCELLED",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_every_end_but_success_is_an_error_with_the_commands_id(
    http: aioresponses, clock: SenderClock, answer: Any, kind: type[CommandFailed], code: str
) -> None:
    http.get(STATUS, payload=answer, repeat=True)

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(kind) as raised:
            await arc.wait("cmd_1")

    assert type(raised.value) is kind
    assert raised.value.code == code
    assert raised.value.command_id == "cmd_1"


async def test_a_failure_carries_the_details_of_its_handler(
    http: aioresponses, clock: SenderClock
) -> None:
    response = {"status": "error", "code": "E", "message": "m", "details": "line 3"}
    http.get(STATUS, payload=status("FAILED", response=response), repeat=True)

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(CommandFailed, match="command cmd_1 failed: E: m") as raised:
            await arc.wait("cmd_1")

    assert raised.value.details == "line 3"


CREATE = "https://h/v1/commands"


@pytest.mark.parametrize(
    ("took", "counted"), [(1.0, 1.0), (0.0, 0.0), (6.0, 1.0)], ids=["held", "at once", "slow"]
)
async def test_a_time_out_begins_when_the_server_has_the_command(
    http: aioresponses, clock: SenderClock, took: float, counted: float
) -> None:
    """A create is held for a second at most; all else that it took came before."""
    http.post(
        CREATE,
        payload=created(status=status("PENDING")),
        callback=lambda *_, **__: clock.advance(took),
    )
    http.get(STATUS, payload=status("PENDING"), repeat=True)

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(CommandTimeout, match=r"is still PENDING after 1m$"):
            await arc.invoke("dep", "x", timeout=60)

    assert clock.now == 1000 + took - counted + 60


async def test_a_create_that_was_tried_again_takes_nothing_of_the_time_out(
    http: aioresponses, clock: SenderClock
) -> None:
    away = aiohttp.ServerDisconnectedError()
    http.post(CREATE, exception=away, callback=lambda *_, **__: clock.advance(5))
    http.post(CREATE, payload=created(status=status("PENDING")))
    http.get(STATUS, payload=status("PENDING"), repeat=True)

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(CommandTimeout):
            await arc.invoke("dep", "x", timeout=60)

    begun = 1005 + clock.slept[0]
    assert clock.now == pytest.approx(begun + 60)


@pytest.mark.parametrize("is_away", [True, False])
async def test_looking_for_the_command_takes_of_the_time_out(
    http: aioresponses, clock: SenderClock, is_away: bool
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        clock.advance(9)

    if is_away:
        http.get(STATUS, exception=aiohttp.ServerDisconnectedError(), callback=slow)
    http.get(STATUS, payload=status("PENDING"), callback=slow)
    http.get(STATUS, payload=status("PENDING"), repeat=True)

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(CommandTimeout, match=r"after 1m$"):
            await arc.wait("cmd_1", timeout=60)

    assert clock.now == pytest.approx(1060)


class Reasons(ProgressCallbacks):
    """Keeps each reason that a wait brings."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []

    def on_waiting(self, status: CommandStatus) -> None:
        self.reasons.append(None if status.waiting is None else status.waiting.reason)


def waiting(reason: str, tag: str, **more: str) -> dict[str, dict[str, str]]:
    """Why cmd_1 waits, as the server says it."""
    return {"waiting": {"reason": reason, "tag": tag, "now": "2026-11-24T12:00:00Z", **more}}


async def test_each_reason_is_passed_on_once_and_named_in_the_next_request(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, payload=status("PENDING", **waiting("paused", "t1")))
    http.get(STATUS, payload=status("PENDING", **waiting("paused", "t1")))
    http.get(STATUS, payload=status("DISPATCHED", **waiting("approval", "t2")))
    http.get(STATUS, payload=status("DISPATCHED"))
    http.get(STATUS, payload=status("SUCCEEDED", b"1"))
    callbacks = Reasons()

    async with Client("https://h", clock=clock, callbacks=callbacks) as arc:
        await arc.wait_for_end("cmd_1", is_known=True)

    assert callbacks.reasons == ["paused", "approval", None]
    named = [url.query["waiting"] for _, url in http.requests]
    assert named == ["none", "t1", "t2"]
    assert clock.slept == [0.5], "an answer that brings a reason is no sign of a busy server"


async def test_a_wait_that_runs_out_says_why_the_command_waits(
    http: aioresponses, clock: SenderClock
) -> None:
    reason = waiting("paused", "t1", hostname="edge-7", note="new disk")
    http.get(STATUS, payload=status("PENDING", **reason), repeat=True)

    with pytest.raises(
        CommandTimeout,
        match=r"still PENDING after 1m: the agent on edge-7 is paused \(new disk\)$",
    ) as raised:
        await end_of(clock)

    assert raised.value.waiting is not None
    assert raised.value.waiting.hostname == "edge-7"
