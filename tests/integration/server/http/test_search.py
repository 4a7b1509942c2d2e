"""Finding commands over the wire: every filter, its cursors, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest

from arc_protocol.lifecycle import ShownState
from arc_server.auth.tokens import Scope
from tests.support.running_server import OTHER, OWN, Client, inline, make_token, success


async def found(client: Client, query: str, **call: Any) -> list[str]:
    """Return the ids of a list, all pages of it."""
    ids: list[str] = []
    cursor = ""
    while True:
        answer = await client.call("GET", f"/v1/commands?{query}{cursor}", **call)
        assert answer.status == 200, answer
        ids += [each["commandId"] for each in answer.json["commands"]]
        if "cursor" not in answer.json:
            return ids
        cursor = f"&cursor={answer.json['cursor']}"


async def run(client: Client, deployment: str = OWN) -> str:
    """Lease a command and let it succeed."""
    [lease] = await client.lease(deployment, maxLeases=1)
    url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
    assert (await client.call("PUT", url, success())).status == 200
    return lease["commandId"]


async def test_each_filter_finds_its_commands(client: Client) -> None:
    done = await client.create(command="report", idempotencyKey="key one")
    await run(client)
    cancelled = await client.create(command="vacuum")
    await client.call("POST", f"/v1/commands/{cancelled}/cancel")
    other = await client.create(OTHER, command="vacuum", targetResourceId="vault")
    waiting = await client.create(OWN, command="report")
    sender = (await client.status(done))["createdBy"]
    ended = (await client.status(cancelled))["completedAt"]
    created = (await client.status(other))["createdAt"]

    every = [waiting, other, cancelled, done]
    for query, expected in {
        "": every,
        f"deploymentId={OTHER}": [other],
        "state=FAILED": [cancelled],
        "states=FAILED": [],
        "states=CANCELLED": [cancelled],
        "states=CANCELLED,SUCCEEDED": [cancelled, done],
        "states=PENDING,DISPATCHED": [waiting, other],
        "command=vacuum": [other, cancelled],
        "target=vault": [other],
        "target=default": [waiting, cancelled, done],
        f"createdBy={sender}": every,
        "createdBy=tok_none": [],
        "idempotencyKey=key%20one": [done],
        "idempotencyKey=none": [],
        f"createdAfter={created}": [waiting, other],
        f"createdBefore={created}": [cancelled, done],
        f"endedAfter={ended}": [cancelled],
        f"endedBefore={ended}": [done],
        f"endedAfter=2020-01-01T00:00:00Z&deploymentId={OWN}": [cancelled, done],
        f"deploymentId={OWN}&command=report&states=SUCCEEDED": [done],
    }.items():
        assert await found(client, query) == expected, query
        assert await found(client, f"{query}&limit=1") == expected, query


async def test_tags_are_shown_and_found(client: Client) -> None:
    tags = {"team": "web", "env": "prod", "note": "a & b = 'ü' *"}
    tagged = await client.create(tags=tags)
    await client.create(tags={"team": "web"})
    plain = await client.create(tags={})

    assert (await client.status(tagged))["tags"] == tags
    assert "tags" not in await client.status(plain)
    listed = await client.call("GET", "/v1/commands?tag.env=prod")
    assert [each["tags"] for each in listed.json["commands"]] == [tags]
    assert listed.json["filteredBy"] == ["tag.env"]
    assert len(await found(client, "tag.team=web&limit=1")) == 2
    assert await found(client, "tag.team=web&tag.env=prod") == [tagged]
    assert await found(client, f"tag.note={quote(tags['note'])}") == [tagged]
    assert await found(client, "tag.team=web&tag.env=test") == []


@pytest.mark.parametrize(
    "tags",
    [
        {"Team": "web"},
        {"": "web"},
        {"k" * 65: "web"},
        {"a b": "web"},
        {"team": ""},
        {"team": "v" * 257},
        {"team": "a\u202eb"},
        {"team": "a\nb"},
        {"team": "\u200b"},
        {"team": 5},
        {"team": None},
        {f"k{number}": "v" for number in range(17)},
        ["team"],
        "team",
    ],
    ids=lambda tags: str(tags)[:20],
)
async def test_bad_tags_are_refused_by_name(client: Client, tags: Any) -> None:
    create = {"deploymentId": OWN, "command": "report", "params": inline(b"{}"), "tags": tags}

    answer = await client.call("POST", "/v1/commands", create)

    assert (answer.status, answer.code) == (400, "INVALID_COMMAND"), answer
    assert "tags" in answer.json["message"], answer.json
    assert (await client.call("GET", "/v1/commands")).json == {"commands": []}


async def test_a_list_says_which_fields_it_was_filtered_by(client: Client) -> None:
    named = await client.call("GET", f"/v1/commands?deploymentId={OWN}&states=FAILED&limit=3")
    bare = await client.call("GET", "/v1/commands")

    assert named.json["filteredBy"] == ["deploymentId", "states"]
    assert bare.json == {"commands": []}


@asynccontextmanager
async def _cursor(client: Client, query: str) -> AsyncIterator[str]:
    for _ in range(3):
        await client.create()
    first = await client.call("GET", f"/v1/commands?{query}&limit=1")
    yield first.json["cursor"]


async def test_a_cursor_that_was_tampered_with_is_refused(client: Client) -> None:
    async with _cursor(client, "state=PENDING") as cursor:
        letters = [("B" if letter == "A" else "A") for letter in cursor]
        edited = [cursor[:at] + letters[at] + cursor[at + 1 :] for at in range(len(cursor))]
        for each in [*edited, cursor[:-1], cursor + "A", cursor * 2, f"{cursor}=", "5", "%00"]:
            answer = await client.call("GET", f"/v1/commands?state=PENDING&cursor={each}")
            assert (answer.status, answer.code) == (400, "INVALID_COMMAND"), each
            assert answer.json["context"]["field"] == "cursor"


@pytest.mark.parametrize(
    "query", ["", "state=SUCCEEDED", "states=PENDING", f"state=PENDING&deploymentId={OWN}"]
)
async def test_a_cursor_is_good_for_the_filter_that_it_came_with(
    client: Client, query: str
) -> None:
    async with _cursor(client, "state=PENDING") as cursor:
        good = await client.call("GET", f"/v1/commands?state=PENDING&limit=50&cursor={cursor}")
        bad = await client.call("GET", f"/v1/commands?{query}&cursor={cursor}")

        assert (good.status, len(good.json["commands"])) == (200, 2)
        assert (bad.status, bad.json["context"]["field"]) == (400, "cursor")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("createdAfter=2026-01-02T00:00:00Z&createdBefore=2026-01-01T00:00:00Z", "createdBefore"),
        ("createdAfter=2026-01-01T00:00:00Z&createdBefore=2026-01-01T00:00:00Z", "createdBefore"),
        ("endedAfter=2026-01-01T02:00:00%2B02:00&endedBefore=2026-01-01T00:00:00Z", "endedBefore"),
        ("createdAfter=yesterday", "createdAfter"),
        ("createdAfter=2026-01-01T00:00:00", "createdAfter"),
        ("endedBefore=1767225600", "endedBefore"),
        ("endedAfter=", "endedAfter"),
        ("createdBefore=0001-01-01T00:00:00%2B23:00", "timestamp"),
        ("state=CANCELLED", "state"),
        ("state=FAILED,EXPIRED", "state"),
        ("states=", "states"),
        ("states=failed", "states"),
        ("states=FAILED,", "states"),
        ("states=FAILED&state=FAILED", "states"),
        ("target=%E2%80%AEx", "target"),
        ("target=", "target"),
        ("createdBy=%00", "createdBy"),
        ("command=a%E2%81%A6b", "command"),
        ("idempotencyKey=a%0Ab", "idempotencyKey"),
        (f"idempotencyKey={'k' * 257}", "idempotencyKey"),
        ("deploymentid=x", "deploymentid"),
        ("tag=x", "tag"),
        ("tag.Team=x", "tag.Team"),
        ("tag.=x", "tag."),
        ("tag.team=", "tag.team"),
        ("tag.team=%E2%80%AE", "tag.team"),
        ("tag.team=a&tag.team=b", "tag.team"),
        ("&".join(f"tag.k{n}=v" for n in range(17)), "tag."),
        ("since=1h", "since"),
    ],
)
async def test_a_bad_filter_is_refused_by_the_name_of_its_field(
    client: Client, query: str, field: str
) -> None:
    answer = await client.call("GET", f"/v1/commands?{query}")

    assert (answer.status, answer.code) == (400, "INVALID_COMMAND"), answer
    assert field in answer.json["message"]


async def test_a_viewer_finds_what_its_token_may_see(client: Client) -> None:
    mine = await client.create(command="report", idempotencyKey="k")
    await client.create(OTHER, command="report", idempotencyKey="k")
    await client.create(command="vacuum", idempotencyKey="k")
    token = await make_token(client.server, Scope.VIEWER, OWN, commands=["report"])

    assert await found(client, "idempotencyKey=k", token=token) == [mine]
    assert await found(client, "states=PENDING&limit=1", token=token) == [mine]
    other = await client.call("GET", f"/v1/commands?deploymentId={OTHER}", token=token)
    assert other.status == 403


async def test_commands_are_counted_by_state(client: Client) -> None:
    await client.create()
    await client.create(OTHER)
    done = await client.create()
    await client.call("POST", f"/v1/commands/{done}/cancel")
    viewer = await make_token(client.server, Scope.VIEWER, OWN)
    bound = await make_token(client.server, Scope.VIEWER, OWN, commands=["rep*"])

    every = (await client.call("GET", "/v1/commands/counts")).json["counts"]
    own = (await client.call("GET", "/v1/commands/counts", token=viewer)).json["counts"]
    named = (await client.call("GET", f"/v1/commands/counts?deploymentId={OTHER}")).json["counts"]

    zeros = dict.fromkeys(ShownState, 0)
    assert every == zeros | {"PENDING": 2, "CANCELLED": 1}
    assert own == zeros | {"PENDING": 1, "CANCELLED": 1}
    assert named == zeros | {"PENDING": 1}
    assert (await client.call("GET", "/v1/commands/counts", token=bound)).json == {}
    other = await client.call("GET", f"/v1/commands/counts?deploymentId={OTHER}", token=viewer)
    assert other.status == 403
    for query in ("states=FAILED", "deploymentId=", "deploymentId=a%00"):
        bad = await client.call("GET", f"/v1/commands/counts?{query}")
        assert (bad.status, bad.code) == (400, "INVALID_COMMAND")
