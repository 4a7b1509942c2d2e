"""Creating commands and uploading params, by a clock that the test moves."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aioresponses import CallbackResult, aioresponses

from arc_client import (
    Client,
    InvalidParams,
    ProgressCallbacks,
    ServerUnreachable,
    TokenRefused,
    UnexpectedAnswer,
    UploadFailed,
)
from arc_protocol.errors import (
    CommandTargetNotFound,
    IdempotencyKeyReused,
    InvalidCommand,
    PayloadTooLarge,
    RateLimited,
)
from arc_protocol.messages.commands import CreateCommandResponse
from tests.support.client_fakes import created, error, status, upload_to
from tests.support.clocks import SenderClock
from tests.support.waiting import until

CREATE = "https://h/v1/commands"
COMPLETE = "https://h/v1/commands/cmd_1/upload-complete"
STORE = "http://blobs/p"
LARGE = b'"' + b"x" * 1_600_000 + b'"'


def creates(http: aioresponses) -> list[dict[str, Any]]:
    """The bodies of all create requests."""
    return [
        json.loads(call.kwargs["data"])
        for (method, url), calls in http.requests.items()
        for call in calls
        if method == "POST" and str(url) == CREATE
    ]


def uploads(http: aioresponses, answers: list[Any]) -> list[tuple[str, bytes]]:
    """Take uploads to the store, answer each as told, and remember what came to which URL."""
    taken: list[tuple[str, bytes]] = []

    def take(url: Any, **kwargs: Any) -> CallbackResult:
        body = kwargs["data"]  # aioresponses has read it to its end
        assert kwargs["headers"]["Content-Length"] == str(len(body))
        assert kwargs["headers"]["x-ms-blob-type"] == "BlockBlob"
        assert "Authorization" not in kwargs["headers"]
        taken.append((str(url), body))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return CallbackResult(status=answer)

    http.put(re.compile("^http://blobs/"), callback=take, repeat=True)
    return taken


async def test_every_create_carries_a_key_and_repeats_it(
    http: aioresponses, clock: SenderClock
) -> None:
    http.post(CREATE, exception=aiohttp.ServerDisconnectedError())
    http.post(CREATE, status=503, body=error("UNAVAILABLE"))
    http.post(CREATE, status=408)
    http.post(CREATE, payload=created())

    async with Client("https://h", clock=clock) as arc:
        sent = await arc.send("dep", "c", {"a": 1})

    bodies = creates(http)
    assert len(bodies) == 4
    assert all(body == bodies[0] for body in bodies)
    assert bodies[0]["idempotencyKey"] == sent.idempotency_key
    assert len(sent.idempotency_key) == 36


async def test_what_is_asked_for_is_what_is_sent_and_no_more(
    http: aioresponses, clock: SenderClock
) -> None:
    http.post(CREATE, payload=created(), repeat=True)
    deadline = datetime(2100, 1, 1, 2, tzinfo=UTC).astimezone()

    async with Client("https://h", clock=clock) as arc:
        await arc.send("dep", "c", idempotency_key="k")
        await arc.send(
            "dep", "c", b"x", deadline=deadline, target="t", idempotency_key="k", max_attempts=2
        )

    assert creates(http) == [
        {
            "deploymentId": "dep",
            "command": "c",
            "params": {"mode": "inline", "inlineBase64": "e30="},
            "idempotencyKey": "k",
        },
        {
            "deploymentId": "dep",
            "command": "c",
            "params": {"mode": "inline", "inlineBase64": "eA=="},
            "deadline": "2100-01-01T02:00:00Z",
            "idempotencyKey": "k",
            "targetResourceId": "t",
            "maxAttempts": 2,
        },
    ]


@pytest.mark.parametrize("deadline", [300, 300.0, timedelta(minutes=5)])
async def test_a_deadline_may_be_a_number_of_seconds_from_now(
    http: aioresponses, clock: SenderClock, deadline: Any
) -> None:
    http.post(CREATE, payload=created())
    before = datetime.now(UTC)

    async with Client("https://h", clock=clock) as arc:
        await arc.send("dep", "c", deadline=deadline)

    sent = datetime.fromisoformat(creates(http)[0]["deadline"])
    assert before <= sent - timedelta(minutes=5) <= datetime.now(UTC)


@pytest.mark.parametrize("deadline", [datetime(2100, 1, 1), 1e15, float("nan"), timedelta.max])
async def test_a_deadline_that_is_no_instant_is_refused(
    http: aioresponses, clock: SenderClock, deadline: Any
) -> None:
    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(InvalidParams, match="deadline"):
            await arc.send("dep", "c", deadline=deadline)

    assert creates(http) == []


async def test_a_server_that_stays_away_is_an_error_with_the_key_to_go_on_with(
    http: aioresponses, clock: SenderClock
) -> None:
    http.post(CREATE, exception=aiohttp.ServerDisconnectedError(), repeat=True)

    async with Client("https://h", clock=clock, retry_seconds=20) as arc:
        with pytest.raises(ServerUnreachable, match="closed the connection") as raised:
            await arc.invoke("dep", "c", timeout=3600)

    assert raised.value.context["idempotency_key"] == creates(http)[0]["idempotencyKey"]
    assert 1010 < clock.now <= 1020


async def test_nobody_retries_longer_than_he_would_wait(
    http: aioresponses, clock: SenderClock
) -> None:
    http.post(CREATE, exception=aiohttp.ServerDisconnectedError(), repeat=True)

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(ServerUnreachable):
            await arc.invoke("dep", "c", timeout=3)

    assert clock.now <= 1003


async def test_a_server_that_is_busy_to_the_end_is_told_apart_from_one_that_is_gone(
    http: aioresponses, clock: SenderClock
) -> None:
    http.post(CREATE, status=429, body=error("RATE_LIMITED"), repeat=True)

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(RateLimited, match="said so"):
            await arc.send("dep", "c")


@pytest.mark.parametrize(
    ("code", "http_status", "kind"),
    [
        ("INVALID_COMMAND", 400, InvalidCommand),
        ("IDEMPOTENCY_KEY_REUSED", 409, IdempotencyKeyReused),
        ("PAYLOAD_TOO_LARGE", 413, PayloadTooLarge),
        ("UNAUTHORIZED", 401, TokenRefused),
    ],
)
async def test_a_refusal_is_final(
    http: aioresponses, clock: SenderClock, code: str, http_status: int, kind: type[Exception]
) -> None:
    http.post(CREATE, status=http_status, body=error(code))

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(kind, match="said so"):
            await arc.send("dep", "c")

    assert len(creates(http)) == 1


async def test_a_redirect_is_not_followed_but_told(http: aioresponses, clock: SenderClock) -> None:
    http.post(CREATE, status=301, headers={"Location": "https://h/v1/commands"})

    async with Client("https://h", token="secret", clock=clock) as arc:
        with pytest.raises(UnexpectedAnswer, match=r"redirects to https://h/v1/commands"):
            await arc.send("dep", "c")


async def test_a_refused_token_is_read_again_from_its_file_once(
    http: aioresponses, clock: SenderClock, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    seen: list[str] = []

    def judge(url: Any, **kwargs: Any) -> CallbackResult:
        seen.append(kwargs["headers"]["Authorization"])
        if seen[-1] == "Bearer new":
            return CallbackResult(payload=created())
        return CallbackResult(status=401, body=error("UNAUTHORIZED"))

    http.post(CREATE, callback=judge, repeat=True)

    async with Client("https://h", token_file=file, clock=clock) as arc:
        with pytest.raises(TokenRefused):
            await arc.send("dep", "c")
        file.write_text("new\n")
        await arc.send("dep", "c")
        await arc.send("dep", "c")

    assert seen == ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]


async def test_small_params_go_along_and_large_ones_are_uploaded(
    http: aioresponses, clock: SenderClock
) -> None:
    taken = uploads(http, [200])
    storage = upload_to(f"{STORE}?sig=1")
    http.post(CREATE, payload=created("PENDING_UPLOAD", next="upload", storageUpload=storage))
    http.post(COMPLETE, payload={"commandId": "cmd_1", "state": "PENDING"})

    async with Client("https://h", token="secret", clock=clock) as arc:
        sent = await arc.send("dep", "c", LARGE)

    assert creates(http)[0]["params"] == {"mode": "storage", "size": len(LARGE)}
    assert taken == [(f"{STORE}?sig=1", LARGE)]
    assert sent.state == "PENDING"


@pytest.mark.parametrize(
    "failure", [409, 403, 404, 500, 503, aiohttp.ClientOSError(104, "reset")], ids=str
)
async def test_an_upload_that_fails_begins_again_at_a_fresh_url(
    http: aioresponses, clock: SenderClock, failure: Any
) -> None:
    taken = uploads(http, [failure, 200])
    for number in (1, 2):
        storage = upload_to(f"{STORE}?sig={number}")
        http.post(CREATE, payload=created("PENDING_UPLOAD", next="upload", storageUpload=storage))
    http.post(COMPLETE, payload={"commandId": "cmd_1", "state": "PENDING"})

    async with Client("https://h", clock=clock) as arc:
        await arc.send("dep", "c", LARGE)

    assert taken == [(f"{STORE}?sig=1", LARGE), (f"{STORE}?sig=2", LARGE)]
    first, second = creates(http)
    assert first == second


async def test_a_server_that_renews_no_url_gets_the_upload_at_the_old_one(
    http: aioresponses, clock: SenderClock
) -> None:
    taken = uploads(http, [503, 200])
    storage = upload_to(f"{STORE}?sig=1")
    http.post(CREATE, payload=created("PENDING_UPLOAD", next="upload", storageUpload=storage))
    http.post(CREATE, payload=created("PENDING_UPLOAD"))
    http.post(COMPLETE, payload={"commandId": "cmd_1", "state": "PENDING"})

    async with Client("https://h", clock=clock) as arc:
        await arc.send("dep", "c", LARGE)

    assert [url for url, _ in taken] == [f"{STORE}?sig=1"] * 2


async def test_an_upload_that_keeps_failing_is_given_up_with_the_commands_id(
    http: aioresponses, clock: SenderClock
) -> None:
    taken = uploads(http, [403] * 100)
    storage = upload_to(STORE)
    http.post(
        CREATE,
        payload=created("PENDING_UPLOAD", next="upload", storageUpload=storage),
        repeat=True,
    )

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(UploadFailed, match="HTTP 403") as raised:
            await arc.send("dep", "c", LARGE)

    assert len(taken) == 5
    assert raised.value.command_id == "cmd_1"
    assert raised.value.context["idempotency_key"]


@pytest.mark.parametrize("size", [150_001, 1_500_000])
async def test_params_that_public_servers_take_are_sent_inline(
    http: aioresponses, clock: SenderClock, size: int
) -> None:
    http.post(CREATE, payload=created())

    async with Client("https://h", clock=clock) as arc:
        await arc.send("dep", "c", bytes(size))

    [create] = creates(http)
    assert len(b64decode(create["params"]["inlineBase64"])) == size
    assert len(json.dumps(create)) < 2 * 1024 * 1024


async def test_inline_params_that_are_too_large_for_a_server_are_uploaded(
    http: aioresponses, clock: SenderClock
) -> None:
    taken = uploads(http, [403, 200])
    storage = upload_to(STORE)
    waiting = created("PENDING_UPLOAD", next="upload", storageUpload=storage)
    http.post(CREATE, status=413, body=error("PAYLOAD_TOO_LARGE"))
    http.post(CREATE, payload=waiting, repeat=True)
    http.post(COMPLETE, payload={"commandId": "cmd_1", "state": "PENDING"})

    async with Client("https://h", clock=clock) as arc:
        await arc.send("dep", "c", bytes(200_000))

    assert [create["params"]["mode"] for create in creates(http)] == ["inline", *["storage"] * 2]
    assert len({create["idempotencyKey"] for create in creates(http)}) == 1
    assert [body for _, body in taken] == [bytes(200_000)] * 2


async def test_a_command_whose_upload_is_on_the_servers_own_disk_is_cancelled(
    http: aioresponses, clock: SenderClock
) -> None:
    storage = upload_to(STORE)
    storage["putRequest"]["backend"] = {"type": "local", "filePath": "/p", "operation": "put"}
    http.post(CREATE, payload=created("PENDING_UPLOAD", next="upload", storageUpload=storage))
    http.post("https://h/v1/commands/cmd_1/cancel", payload=status("FAILED"))

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(UploadFailed, match="on its own disk only"):
            await arc.send("dep", "c", LARGE)

    assert len(creates(http)) == 1
    assert sum(str(url).endswith("/cancel") for _, url in http.requests) == 1


@pytest.mark.parametrize("status_code", [404, 500])
async def test_a_final_code_is_believed_at_once_whatever_its_status(
    http: aioresponses, clock: SenderClock, status_code: int
) -> None:
    http.post(CREATE, status=status_code, body=error("COMMAND_TARGET_NOT_FOUND"), repeat=True)

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(CommandTargetNotFound):
            await arc.send("dep", "c")

    assert len(creates(http)) == 1
    assert clock.slept == []


async def test_params_that_are_too_large_for_the_store_are_sent_once(
    http: aioresponses, clock: SenderClock
) -> None:
    taken = uploads(http, [413])
    storage = upload_to(STORE)
    http.post(CREATE, payload=created("PENDING_UPLOAD", next="upload", storageUpload=storage))

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(UploadFailed, match="413"):
            await arc.send("dep", "c", LARGE)

    assert len(taken) == 1


async def test_an_upload_that_the_server_does_not_find_is_made_again(
    http: aioresponses, clock: SenderClock
) -> None:
    taken = uploads(http, [200, 200])
    storage = upload_to(STORE)
    http.post(
        CREATE,
        payload=created("PENDING_UPLOAD", next="upload", storageUpload=storage),
        repeat=True,
    )
    http.post(COMPLETE, status=400, body=error("INVALID_COMMAND", "size: nothing there"))
    http.post(COMPLETE, payload={"commandId": "cmd_1", "state": "PENDING"})

    async with Client("https://h", clock=clock) as arc:
        await arc.send("dep", "c", LARGE)

    assert len(taken) == 2


async def test_an_upload_complete_whose_answer_got_lost_is_said_again_and_believed(
    http: aioresponses, clock: SenderClock
) -> None:
    taken = uploads(http, [200])
    storage = upload_to(STORE)
    http.post(CREATE, payload=created("PENDING_UPLOAD", next="upload", storageUpload=storage))
    http.post(CREATE, payload=created("DISPATCHED"))
    http.post(COMPLETE, exception=aiohttp.ServerDisconnectedError())
    http.post(COMPLETE, status=400, body=error("INVALID_STATE_TRANSITION", "it is DISPATCHED"))

    async with Client("https://h", clock=clock) as arc:
        sent = await arc.send("dep", "c", LARGE)

    assert len(taken) == 1
    assert sent.state == "DISPATCHED"


async def test_large_params_of_a_key_that_was_used_before_are_not_uploaded_again(
    http: aioresponses, clock: SenderClock
) -> None:
    http.post(CREATE, payload=created("SUCCEEDED"))
    http.get(re.compile("https://h/v1/commands/cmd_1"), payload=status("SUCCEEDED", b"7"))

    async with Client("https://h", clock=clock) as arc:
        assert await arc.invoke("dep", "c", LARGE, idempotency_key="k") == 7


async def test_a_server_that_says_nowhere_to_upload_is_not_asked_for_ever(
    http: aioresponses, clock: SenderClock
) -> None:
    http.post(CREATE, payload=created("PENDING_UPLOAD"))

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(UploadFailed, match="does not say where"):
            await arc.send("dep", "c", LARGE)


async def test_a_watcher_is_told_what_happens(http: aioresponses, clock: SenderClock) -> None:
    told: list[Any] = []

    class Told(ProgressCallbacks):
        def on_created(self, answer: CreateCommandResponse) -> None:
            told.append(answer.command_id)

        def on_upload(self, sent: int, total: int) -> None:
            told.append((sent, total))

        def on_retry(self, error: Exception) -> None:
            told.append(type(error))

    uploads(http, [200])
    storage = upload_to(STORE)
    http.post(CREATE, status=503)
    http.post(CREATE, payload=created("PENDING_UPLOAD", next="upload", storageUpload=storage))
    http.post(COMPLETE, payload={"commandId": "cmd_1", "state": "PENDING"})

    async with Client("https://h", clock=clock, callbacks=Told(), inline_bytes=9) as arc:
        await arc.send("dep", "c", b"ten bytes.")

    unavailable, *rest = told
    assert unavailable.code == "UNAVAILABLE"
    assert rest == ["cmd_1", (0, 10), (10, 10), "cmd_1"]


async def test_a_client_that_is_not_open_says_so(clock: SenderClock) -> None:
    with pytest.raises(RuntimeError, match="`with` statement"):
        await Client("https://h", clock=clock).status("cmd_1")


async def test_cancelling_an_invoke_leaves_no_retry_behind(
    http: aioresponses, clock: SenderClock
) -> None:
    http.post(CREATE, status=503, repeat=True)

    async with Client("https://h", clock=clock, retry_seconds=1e9) as arc:
        task = asyncio.ensure_future(arc.invoke("dep", "c", timeout=None))
        async with asyncio.timeout(5):
            await until(lambda: len(creates(http)) >= 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = len(creates(http))
        await asyncio.sleep(0)

    assert len(creates(http)) == before


async def test_a_quick_command_is_one_request(http: aioresponses, clock: SenderClock) -> None:
    http.post(CREATE, payload=created(status=status("SUCCEEDED", b"7")))

    async with Client("https://h", clock=clock) as arc:
        assert await arc.invoke("dep", "c") == 7

    (sent,) = creates(http)
    assert sent["waitSeconds"] == 1.0
    assert sum(map(len, http.requests.values())) == 1


@pytest.mark.parametrize("more", [{"status": status("DISPATCHED")}, {}], ids=["extended", "base"])
async def test_what_is_not_done_within_the_create_is_waited_for(
    http: aioresponses, clock: SenderClock, more: dict[str, Any]
) -> None:
    http.post(CREATE, payload=created(**more))
    http.get(
        f"https://h/v1/commands/cmd_1?waitSeconds={9 if more else 10}&waiting=none",
        payload=status("SUCCEEDED", b"7"),
    )

    async with Client("https://h", clock=clock) as arc:
        assert await arc.invoke("dep", "c", timeout=10) == 7


async def test_a_send_waits_for_nothing(http: aioresponses, clock: SenderClock) -> None:
    http.post(CREATE, payload=created())

    async with Client("https://h", clock=clock) as arc:
        await arc.send("dep", "c")

    assert "waitSeconds" not in creates(http)[0]
