"""Long polls, public URLs and clients of both generations, over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from arc_protocol.errors import StoreUnavailable
from tests.support.running_server import OWN, Client, Serve, inline, success
from tests.support.waiting import until


async def test_a_waiting_agent_gets_a_command_the_moment_it_is_created(client: Client) -> None:
    waiting = asyncio.create_task(client.lease(waitSeconds=60))
    await until(lambda: client.server.parts.services.announcements.work.count == 1)

    command_id = await client.create()

    (lease,) = await waiting
    assert lease["commandId"] == command_id


async def test_a_waiting_sender_gets_the_result_the_moment_it_is_there(client: Client) -> None:
    command_id = await client.create()
    (lease,) = await client.lease()
    path = f"/v1/commands/{command_id}?waitSeconds=60"
    waiting = asyncio.create_task(client.call("GET", path))
    await until(lambda: client.server.parts.services.announcements.results.count == 1)

    url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
    assert (await client.call("PUT", url, success(), token="")).status == 200

    assert (await waiting).json["state"] == "SUCCEEDED"


async def test_a_sender_may_create_and_wait_in_one_request(client: Client) -> None:
    body = {"deploymentId": OWN, "command": "report", "params": inline(b"{}"), "waitSeconds": 60}
    waiting = asyncio.create_task(client.call("POST", "/v1/commands", body))
    (lease,) = await client.lease(waitSeconds=60)
    await until(lambda: client.server.parts.services.announcements.results.count == 1)

    url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
    assert (await client.call("PUT", url, success(), token="")).status == 200

    created = (await waiting).json
    read = (await client.call("GET", f"/v1/commands/{created['commandId']}")).json
    assert created["status"] == read
    assert (created["state"], read["state"]) == ("PENDING", "SUCCEEDED")


async def test_a_create_that_waits_is_answered_when_its_time_is_up(client: Client) -> None:
    body = {"deploymentId": OWN, "command": "report", "params": inline(b"{}"), "waitSeconds": 0.05}

    created = (await client.call("POST", "/v1/commands", body)).json

    assert created["status"]["state"] == "PENDING"
    assert created["status"]["commandId"] == created["commandId"]


async def test_a_create_whose_wait_fails_is_answered_as_what_it_is_made(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(command_id: str) -> None:
        raise StoreUnavailable(command_id)

    body = {"deploymentId": OWN, "command": "report", "params": inline(b"{}"), "waitSeconds": 0.05}
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(client.server.parts.store, "get", unreadable)
        answer = await client.call("POST", "/v1/commands", body)

    assert answer.status == 200, "the client makes another connection after an error"
    assert "status" not in answer.json
    assert (await client.status(answer.json["commandId"]))["state"] == "PENDING"


async def test_a_repeated_create_that_waits_gets_the_end_at_once(client: Client) -> None:
    body = {
        "deploymentId": OWN,
        "command": "report",
        "params": inline(b"{}"),
        "idempotencyKey": "once",
    }
    first = (await client.call("POST", "/v1/commands", body)).json
    (lease,) = await client.lease()
    url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
    await client.call("PUT", url, success(), token="")

    again = (await client.call("POST", "/v1/commands", body | {"waitSeconds": 60})).json

    assert again["commandId"] == first["commandId"]
    assert again["status"]["state"] == again["state"] == "SUCCEEDED"


async def test_a_create_waits_for_no_upload(client: Client) -> None:
    body = {"deploymentId": OWN, "command": "report", "params": {"mode": "storage", "size": 9}}

    created = (await client.call("POST", "/v1/commands", body | {"waitSeconds": 60})).json

    assert created["next"] == "upload"
    assert "status" not in created


async def test_a_create_whose_wait_is_out_of_bounds_stores_nothing(client: Client) -> None:
    body = {"deploymentId": OWN, "command": "report", "params": inline(b"{}"), "waitSeconds": 61}

    answer = await client.call("POST", "/v1/commands", body)

    assert (answer.status, answer.json["context"]["field"]) == (400, "waitSeconds")
    assert (await client.call("GET", "/v1/commands")).json["commands"] == []


async def test_responses_may_be_handed_in_together_and_each_stands_alone(client: Client) -> None:
    ids = [await client.create() for _ in range(5)]
    leases = {lease["commandId"]: lease["leaseId"] for lease in await client.lease(maxLeases=5)}
    waiting = asyncio.create_task(client.call("GET", f"/v1/commands/{ids[0]}?waitSeconds=60"))
    await until(lambda: client.server.parts.services.announcements.results.count == 1)
    await client.call("POST", f"/v1/commands/leases/{leases[ids[2]]}/release")
    await client.lease()  # another agent has it now
    failure = {"status": "error", "code": "NO", "message": "not today"}
    broken = {"status": "success", "response": {"mode": "inline", "inlineBase64": "="}}
    large = {"status": "success", "response": inline(b"x" * 200_000)}
    responses = [success(), failure, success(), broken, large]

    answer = await client.call(
        "POST",
        "/v1/commands/leases/respond",
        {
            "responses": [
                {"leaseId": leases[command_id], "commandId": command_id, "response": response}
                for command_id, response in zip(ids, responses, strict=True)
            ]
            + [{"leaseId": "lease_x", "commandId": "cmd_unknown", "response": failure}]
        },
    )

    refused = {each["leaseId"]: each["error"]["code"] for each in answer.json["refused"]}
    assert refused == {
        leases[ids[2]]: "LEASE_LOST",
        leases[ids[3]]: "INVALID_COMMAND",
        "lease_x": "COMMAND_NOT_FOUND",
    }
    states = [(await client.call("GET", f"/v1/commands/{each}")).json["state"] for each in ids]
    assert states == ["SUCCEEDED", "FAILED", "DISPATCHED", "DISPATCHED", "SUCCEEDED"]
    assert (await waiting).json["response"] == success()


async def test_responses_handed_in_together_may_be_handed_in_again(client: Client) -> None:
    command_id = await client.create()
    (lease,) = await client.lease()
    one = {"leaseId": lease["leaseId"], "commandId": command_id, "response": success()}

    for responses in ([one, one], [one]):
        answer = await client.call("POST", "/v1/commands/leases/respond", {"responses": responses})
        assert answer.json == {"refused": []}


def lines(*numbers: int) -> list[dict[str, Any]]:
    """Lines of a holder."""
    at = "2026-11-24T10:00:00Z"
    return [{"number": n, "at": at, "level": "info", "message": f"line {n}"} for n in numbers]


async def test_a_sender_hears_what_a_holder_says_the_moment_it_is_said(client: Client) -> None:
    command_id = await client.create()
    (lease,) = await client.lease()
    path = f"/v1/commands/{command_id}/events"
    listening = asyncio.create_task(client.call("GET", f"{path}?waitSeconds=60"))
    await until(lambda: client.server.parts.services.announcements.results.count == 1)

    body = {"leaseId": lease["leaseId"], "lines": lines(1, 2), "progress": {"done": 1, "total": 4}}
    assert (await client.call("POST", path, body)).status == 200

    heard = (await listening).json
    assert [line["message"] for line in heard["lines"]] == ["line 1", "line 2"]
    assert (heard["next"], heard["state"], heard["dropped"]) == (2, "DISPATCHED", 0)
    assert heard["progress"] == {"done": 1.0, "total": 4.0}
    rest = (await client.call("GET", f"{path}?after=1&limit=1")).json
    assert [line["place"] for line in rest["lines"]] == [2]


async def test_who_listens_hears_the_end_too(client: Client) -> None:
    command_id = await client.create()
    (lease,) = await client.lease()
    path = f"/v1/commands/{command_id}/events?waitSeconds=60"
    listening = asyncio.create_task(client.call("GET", path))
    await until(lambda: client.server.parts.services.announcements.results.count == 1)

    url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
    await client.call("PUT", url, success(), token="")

    assert (await listening).json["state"] == "SUCCEEDED"
    assert (await client.call("GET", path)).json["lines"] == []


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
async def test_what_a_holder_dates_outside_the_calendar_is_refused(client: Client, at: str) -> None:
    command_id = await client.create()
    (lease,) = await client.lease()
    held = {"leaseId": lease["leaseId"]}
    path = f"/v1/commands/{command_id}/events"
    said = held | {"lines": [{**lines(1)[0], "at": at}]}
    waiting = {
        "leaseIds": [lease["leaseId"]],
        "waiting": [held | {"reason": "APPROVAL", "until": at}],
    }
    registered = {"deploymentId": OWN, "version": "1", "hostname": "h", "handlers": []}
    paused = registered | {"status": {"state": "paused", "until": at}}

    answers = [
        await client.call("POST", path, said),
        await client.call("POST", "/v1/commands/leases/renew", waiting),
        await client.call("PUT", "/v1/agents/a", paused),
    ]

    assert [(each.status, each.code) for each in answers] == [(400, "INVALID_COMMAND")] * 3
    assert (await client.call("GET", path)).json["lines"] == []


async def test_events_are_refused_that_are_too_large_or_another_holders(client: Client) -> None:
    command_id = await client.create()
    (lease,) = await client.lease()
    path = f"/v1/commands/{command_id}/events"
    good = {"leaseId": lease["leaseId"], "lines": lines(1)}

    long = [{**line, "message": "x" * 4_000} for line in lines(*range(1, 20))]
    answers = [
        await client.call("POST", path, good | {"lines": long}),
        await client.call("POST", path, good | {"leaseId": "lease_x"}),
        await client.call("POST", path, good | {"lines": [{**good["lines"][0], "number": 0}]}),
        await client.call("POST", "/v1/commands/cmd_x/events", good),
        await client.call("GET", f"{path}?limit=1001"),
    ]

    assert [(each.status, each.code) for each in answers] == [
        (413, "PAYLOAD_TOO_LARGE"),
        (409, "LEASE_LOST"),
        (400, "INVALID_COMMAND"),
        (404, "COMMAND_NOT_FOUND"),
        (400, "INVALID_COMMAND"),
    ]
    assert (await client.call("GET", path)).json["lines"] == []


async def test_a_poll_ends_empty_when_its_time_is_up(client: Client) -> None:
    assert await client.lease(waitSeconds=0.05) == []
    command_id = await client.create()

    answer = await client.call("GET", f"/v1/commands/{command_id}?waitSeconds=0.05")

    assert (answer.status, answer.json["state"]) == (200, "PENDING")


@pytest.mark.parametrize("prefix", ["/v1", "", "/v1/", "//v1//"])
async def test_every_spelling_of_the_base_works_to_the_end(client: Client, prefix: str) -> None:
    body = {"deploymentId": OWN, "command": "report", "params": inline(b"{}")}

    created = await client.call("POST", f"{prefix}/commands", body)
    leased = await client.call("POST", f"{prefix}/commands/leases", {"deploymentId": OWN})
    command_id = created.json["commandId"]
    answered = await client.call("PUT", f"{prefix}/commands/{command_id}/response", success())
    seen = await client.call("GET", f"{prefix}/commands/{command_id}")

    assert [x.status for x in (created, leased, answered, seen)] == [200] * 4
    assert seen.json["state"] == "SUCCEEDED"
    url = leased.json["leases"][0]["envelope"]["responseHandling"]["submitResponseUrl"]
    assert url.startswith(f"{client.server.url}/v1/commands/{command_id}/response?")


def urls(document: Any) -> list[str]:
    """Every URL in an answer."""
    if isinstance(document, dict):
        return [url for value in document.values() for url in urls(value)]
    if isinstance(document, list):
        return [url for value in document for url in urls(value)]
    is_url = isinstance(document, str) and document.startswith(("http:", "https:"))
    return [document] if is_url else []


async def test_urls_begin_with_the_public_url_when_there_is_one(serve: Serve) -> None:
    async with serve(public_url="https://arc.example/base") as client:
        await client.create(params=inline(b"x" * 200_000))
        leases = await client.lease()

        found = urls(leases)
        assert len(found) == 3
        assert all(url.startswith("https://arc.example/base/v1/") for url in found)


@pytest.mark.parametrize(
    ("trusted", "base"),
    [
        (["10.0.0.0/8", "127.0.0.1"], "https://outer.example/v1/"),
        (["10.0.0.0/8", "unix"], "http://arc.internal/v1/"),
        ([], "http://arc.internal/v1/"),
    ],
)
async def test_forwarded_headers_count_only_where_they_are_trusted(
    serve: Serve, trusted: list[str], base: str
) -> None:
    async with serve(http={"trusted_proxies": trusted}) as client:
        await client.create()
        headers = {
            "Host": "arc.internal",
            "X-Forwarded-Host": "outer.example",
            "X-Forwarded-Proto": "https",
            "Forwarded": "host=forged.example;proto=https",
        }
        answer = await client.call(
            "POST", "/v1/commands/leases", {"deploymentId": OWN}, headers=headers
        )

        found = urls(answer.json)
        assert len(found) == 2
        assert all(url.startswith(base) for url in found)


async def test_the_agent_of_the_first_generation_gets_one_long_lease(client: Client) -> None:
    for _ in range(3):
        await client.create()
    body = {"deploymentId": OWN, "maxLeases": 10, "leaseSeconds": 60}

    answer = await client.call(
        "POST", "/v1/commands/leases", body, headers={"User-Agent": "alien-agent/1.3.1"}
    )

    (lease,) = answer.json["leases"]
    assert lease["leaseSeconds"] == 330


async def test_an_agent_that_registers_is_listed_with_what_it_holds(client: Client) -> None:
    registration = {
        "deploymentId": OWN,
        "version": "1.0",
        "hostname": "press-7",
        "handlers": [{"name": "report", "description": "Monthly", "paramsSchema": {"x": 1}}],
    }
    assert (await client.call("PUT", "/v1/agents/boot-1", registration)).body == b""
    command_id = await client.create()
    await client.lease(agentId="boot-1")

    (agent,) = (await client.call("GET", "/v1/agents?schemas=true")).json["agents"]

    assert (agent["agentId"], agent["hostname"]) == ("boot-1", "press-7")
    assert agent["handlers"] == registration["handlers"]
    assert [held["commandId"] for held in agent["holding"]] == [command_id]


async def test_a_cancelled_command_is_failed_at_once_or_told_to_its_holder(client: Client) -> None:
    waiting = await client.create()
    cancelled = await client.call("POST", f"/v1/commands/{waiting}/cancel")
    assert cancelled.json["state"] == "FAILED"
    assert (await client.status(waiting))["response"]["code"] == "CANCELLED"

    running = await client.create()
    (lease,) = await client.lease(agentId="boot-1")
    asked = await client.call("POST", f"/v1/commands/{running}/cancel")
    assert (asked.json["state"], asked.json["cancelRequested"]) == ("DISPATCHED", True)
    body = {"leaseIds": [lease["leaseId"]], "agentId": "boot-1"}
    renewed = await client.call("POST", "/v1/commands/leases/renew", body)
    assert renewed.json["cancelled"] == [lease["leaseId"]]


async def test_a_list_is_read_page_by_page_newest_first(client: Client) -> None:
    ids = [await client.create() for _ in range(5)]

    pages: list[list[str]] = []
    cursor = ""
    while True:
        answer = await client.call("GET", f"/v1/commands?deploymentId={OWN}&limit=2{cursor}")
        pages.append([command["commandId"] for command in answer.json["commands"]])
        if "cursor" not in answer.json:
            break
        cursor = f"&cursor={answer.json['cursor']}"

    assert pages == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]


async def test_a_list_names_the_code_of_a_failure_and_has_no_responses(client: Client) -> None:
    command_id = await client.create()
    await client.call("POST", f"/v1/commands/{command_id}/cancel")

    answer = await client.call("GET", f"/v1/commands?deploymentId={OWN}")

    (listed,) = answer.json["commands"]
    assert (listed["state"], listed["errorCode"]) == ("FAILED", "CANCELLED")
    assert "response" not in listed
    assert "errorCode" not in await client.status(command_id)


async def test_a_stale_lease_is_told_that_it_is_lost(client: Client) -> None:
    command_id = await client.create()
    (first,) = await client.lease()
    await client.call("POST", f"/v1/commands/leases/{first['leaseId']}/release")
    (second,) = await client.lease()
    old, new = (
        lease["envelope"]["responseHandling"]["submitResponseUrl"] for lease in (first, second)
    )

    stale = await client.call("PUT", old, success(b"stale"), token="")
    fresh = await client.call("PUT", new, success(b"fresh"), token="")

    assert (stale.status, stale.code) == (409, "LEASE_LOST")
    assert fresh.status == 200
    status = await client.status(command_id)
    assert status["response"]["response"] == inline(b"fresh")
