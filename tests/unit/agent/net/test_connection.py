"""The connection to the server: which answers are final, and when a request is tried again."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from arc_agent.config.sections import ServerSection
from arc_agent.net.connection import (
    Answer,
    BackOff,
    NoAnswer,
    NoContact,
    Refused,
    ServerConnection,
    judged,
    retrying,
    within,
)
from arc_agent.net.routes import Routes
from arc_agent.net.token import ConfiguredToken


@pytest.mark.parametrize("status", [200, 204, 400, 404, 409, 410, 422])
def test_a_final_answer_is_returned(status: int) -> None:
    answer = Answer(status, b"{}", {})

    assert judged(answer) is answer


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_has_the_code_and_reason_of_the_server(status: int) -> None:
    body = b'{"code": "UNAUTHORIZED", "context": {"reason": "revoked"}}'

    with pytest.raises(Refused, match=f"{status} UNAUTHORIZED") as refused:
        judged(Answer(status, body, {}))

    assert (refused.value.code, refused.value.detail) == ("UNAUTHORIZED", "revoked")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ('"this token is bound to another deployment"', ": this token is bound to another deplo"),
        (f'"{"x" * 10_000}"', f": {'x' * 200}"),
        ('"a\\u001b[2Jb"', ""),
        ("7", ""),
    ],
)
def test_a_refusal_repeats_the_words_of_the_server(message: str, told: str) -> None:
    body = f'{{"code": "FORBIDDEN", "message": {message}}}'.encode()

    with pytest.raises(Refused) as refused:
        judged(Answer(403, body, {}))

    assert refused.value.code == "FORBIDDEN"
    assert refused.value.reason.startswith(f"the server answered 403 FORBIDDEN{told}")
    assert len(refused.value.reason) <= len("the server answered 403 FORBIDDEN: ") + 200


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_answer_is_no_contact(status: int) -> None:
    with pytest.raises(NoContact, match=str(status)) as failed:
        judged(Answer(status, b"", {"Retry-After": "7"}))

    assert not isinstance(failed.value, Refused)
    assert failed.value.retry_after == 7


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("86400", 300.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None), ("", None)],
)
def test_retry_after_is_capped_and_a_date_is_ignored(header: str, seconds: float | None) -> None:
    with pytest.raises(NoContact) as failed:
        judged(Answer(503, b"", {"Retry-After": header}))

    assert failed.value.retry_after == seconds


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(407, b"", {}), "proxy.auth_file"),
        (Answer(302, b"", {"Location": "https://login.portal/x?y"}), "to login.portal: a portal"),
        (Answer(302, b"", {"Location": "https://[/"}), r"a redirect \(302\), not followed"),
        (Answer(200, b"<html>", {"Content-Type": "text/html; charset=utf-8"}), "a web page"),
    ],
)
def test_an_answer_of_a_proxy_or_portal_is_no_contact(answer: Answer, reason: str) -> None:
    with pytest.raises(NoContact, match=reason):
        judged(answer)


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"code": "A\\u0007B"}', b'{"code": ""}'])
def test_a_body_without_a_clean_code_shows_none(body: bytes) -> None:
    with pytest.raises(NoContact) as failed:
        judged(Answer(503, body, {}))

    assert failed.value.reason == "the server answered 503"


def test_the_server_tells_its_time_in_the_date_header() -> None:
    assert Answer(200, b"", {"Date": "Thu, 01 Jan 1970 00:00:09 GMT"}).server_now() == 9
    assert Answer(200, b"", {"Date": "soon"}).server_now() is None
    assert Answer(200, b"", {}).server_now() is None


async def test_a_request_without_an_answer_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arc_agent.net.connection._LATE_SECONDS", 0.0)
    ended = asyncio.Event()

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(NoAnswer, match="within 0 s"):
        await within(0.0, never())

    assert ended.is_set()


async def test_an_answer_that_arrives_just_past_the_time_out_still_counts() -> None:
    async def late() -> str:
        await asyncio.sleep(0)
        return "a lease"

    assert await within(0.0, late()) == "a lease"


async def test_a_cancelled_caller_cancels_its_request() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def never() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    caller = asyncio.ensure_future(within(60.0, never()))
    await begun.wait()
    caller.cancel()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


# Back-off


def test_back_off_grows_to_its_cap_with_full_jitter() -> None:
    back_off = BackOff(random.Random(1), 30.0)

    waits = [[back_off.seconds(n, NoContact("x")) for _ in range(200)] for n in (1, 4, 30)]

    assert max(waits[0]) <= 1.0
    assert max(waits[1]) <= 8.0
    assert 25 < max(waits[2]) <= 30.0
    assert min(waits[2]) < 5.0  # agents that return are spread over the whole time


def test_back_off_waits_as_long_as_the_server_asks() -> None:
    back_off = BackOff(random.Random(1), 30.0)

    assert 40 <= back_off.seconds(1, NoContact("x", retry_after=40.0)) <= 41


def test_a_refusal_begins_with_the_longest_wait() -> None:
    back_off = BackOff(random.Random(1), 30.0)

    assert max(back_off.seconds(1, Refused("x")) for _ in range(50)) > 10


async def test_a_call_is_repeated_until_there_is_contact() -> None:
    waits: list[float] = []
    answers: list[Any] = [NoContact("a"), NoContact("b", retry_after=9.0), "an answer"]

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, NoContact):
            raise answer
        return answer

    assert await retrying(sleep, BackOff(random.Random(1), 30.0))(call) == "an answer"
    assert len(waits) == 2
    assert waits[1] >= 9


async def test_another_error_is_not_repeated() -> None:
    async def sleep(_: float) -> None:
        raise AssertionError("no wait")

    async def call() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await retrying(sleep, BackOff(random.Random(1), 30.0))(call)


# URLs


def test_a_route_keeps_the_servers_path_and_query() -> None:
    server = ServerSection(url="https://edge.example/tenant/v1?key=a%20b")
    connection = ServerConnection(server, ConfiguredToken(None, None), Routes(server, environ={}))

    assert connection.url("commands", "a/b") == (
        "https://edge.example/tenant/v1/commands/a%2Fb?key=a%20b"
    )
    assert connection.url("agents", query={"q": "x&y"}) == (
        "https://edge.example/tenant/v1/agents?key=a%20b&q=x%26y"
    )
    assert connection.is_anonymous
