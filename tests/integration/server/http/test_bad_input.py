"""Bad input, and what it gets: a 4xx that names the field, and nothing is stored."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.support.running_server import OWN, Answer, Client, Serve, inline, success

CREATE = {"deploymentId": OWN, "command": "report", "params": inline(b"{}")}
LEASE = {"deploymentId": OWN}
AGENT = {"deploymentId": OWN, "version": "1", "hostname": "h", "handlers": []}
LONG = "x" * 257
CONTROL = "a\x00b"


async def nothing_is_stored(client: Client) -> bool:
    """No command, no agent; and the server still works."""
    commands = await client.call("GET", "/v1/commands")
    agents = await client.call("GET", "/v1/agents")
    return (commands.json, agents.json) == ({"commands": []}, {"agents": []})


def assert_refused(answer: Answer, field: str | None, code: str = "INVALID_COMMAND") -> None:
    assert answer.status == 400, answer
    assert answer.code == code, answer
    assert answer.json["retryable"] is False
    if field is not None:
        assert answer.json["message"].startswith(f"{field}:"), answer
        assert answer.json["context"]["field"] == field, answer


# what is no JSON, or no JSON of ours

NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "a word": b"hello",
    "half an object": b'{"deploymentId": "own"',
    "a trailing comma": b'{"deploymentId": "own",}',
    "two documents": b"{} {}",
    "single quotes": b"{'deploymentId': 'own'}",
    "NaN": b'{"deploymentId": NaN}',
    "infinity": b'{"waitSeconds": Infinity, "deploymentId": "own"}',
    "a comment": b"{} // x",
    "a NUL": b'{"deploymentId": "a\x00b"}',
    "a raw newline in a text": b'{"deploymentId": "a\nb"}',
    "latin-1": '{"deploymentId": "é"}'.encode("latin-1"),
    "UTF-16": '{"deploymentId": "own"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "an overlong encoding": b'{"deploymentId": "\xc0\xaf"}',
    "half a surrogate": b'{"deploymentId": "\\ud800"}',
    "a bad escape": b'{"deploymentId": "\\x41"}',
    "nesting of 60,000 arrays": b'{"deploymentId": ' + b"[" * 60_000,
    "nesting of 10,000 objects": b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
    "random bytes": bytes(range(256)),
}
WITH_BODY = [
    ("POST", "/v1/commands"),
    ("POST", "/v1/commands/cmd_x/upload-complete"),
    ("PUT", "/v1/commands/cmd_x/payload"),
    ("PUT", "/v1/commands/cmd_x/response"),
    ("POST", "/v1/commands/leases"),
    ("POST", "/v1/commands/leases/renew"),
    ("PUT", "/v1/agents/agent-1"),
]


@pytest.mark.parametrize("what", NOT_JSON)
async def test_what_is_no_json_is_refused_by_every_route(client: Client, what: str) -> None:
    for method, path in WITH_BODY:
        answer = await client.call(method, path, data=NOT_JSON[what])
        assert_refused(answer, None)

    assert await nothing_is_stored(client)


@pytest.mark.parametrize("document", ["null", "1", '"x"', "[]", "true", "[{}]"])
async def test_json_that_is_no_object_is_refused_by_every_route(
    client: Client, document: str
) -> None:
    for method, path in WITH_BODY:
        answer = await client.call(method, path, data=document.encode())
        assert_refused(answer, None)
        assert answer.json["message"].startswith("body:")

    assert await nothing_is_stored(client)


# fields

NAMES = ["", LONG, CONTROL, "a\nb", "\x7f", "a\u0085b", 5, None, [], {}, True]
TIMES = [
    "2026-02-30T00:00:00Z",
    "2026-13-01T00:00:00Z",
    "2026-11-24T25:00:00Z",
    "2026-11-24T12:00:00",
    "2026-11-24",
    "soon",
    "",
    1_800_000_000,
    "0000-01-01T00:00:00Z",
    "99999-01-01T00:00:00Z",
    "2020-01-01T00:00:00Z",
]
SOON = ["2998-12-31T23:59:59Z", "2999-01-01T00:00:00Z", "2999-01-01T01:00:00+01:00"]
BASE64 = ["e30", "e30==", "e30*", "e3 0", "e30=\n", "-_8=", "=", "e31=e31=", "é", "e31="]
SIZES = [-1, 1.5, "5", 2**63, 2**64, 10**30, True, [], {}, "NaN"]
SECONDS = [0, -1, -(10**30), 1.5, "1", True, {}]

BAD_FIELDS: list[tuple[str, str, dict[str, Any], str, list[Any]]] = [
    ("POST", "/commands", CREATE, "deploymentId", NAMES),
    ("POST", "/commands", CREATE, "command", NAMES),
    ("POST", "/commands", CREATE, "params", [None, 5, "x", [], {}, {"mode": "carrier pigeon"}]),
    ("POST", "/commands", CREATE, "params.inlineBase64", [*BASE64, 5, None, {}]),
    ("POST", "/commands", CREATE, "deadline", TIMES),
    ("POST", "/commands", CREATE, "notBefore", TIMES[:-1]),
    ("POST", "/commands", CREATE | {"notBefore": "2999-01-01T00:00:00Z"}, "deadline", SOON),
    ("POST", "/commands", CREATE, "idempotencyKey", [LONG, 5, {}]),
    ("POST", "/commands", CREATE, "targetResourceId", [5, {}, [], LONG, CONTROL]),
    ("POST", "/commands", CREATE, "maxAttempts", [0, -1, 101, 10**30, 1.5, "1", True]),
    ("POST", "/commands/leases", LEASE, "deploymentId", NAMES),
    ("POST", "/commands/leases", LEASE, "maxLeases", SECONDS),
    ("POST", "/commands/leases", LEASE, "leaseSeconds", SECONDS),
    ("POST", "/commands/leases", LEASE, "waitSeconds", [-1, 60.5, 61, 10**400, "1", True, {}]),
    ("POST", "/commands/leases", LEASE, "agentId", [x for x in NAMES if x is not None]),
    ("POST", "/commands/leases", LEASE, "target", [5, "x", []]),
    (
        "POST",
        "/commands/leases",
        LEASE | {"target": {"resourceId": "a", "resourceType": "daemon"}},
        "target.resourceId",
        NAMES,
    ),
    (
        "POST",
        "/commands/leases",
        LEASE | {"target": {"resourceId": "a", "resourceType": "daemon"}},
        "target.resourceType",
        ["robot", "DAEMON", "", 5, None],
    ),
    ("POST", "/commands/leases/renew", {"leaseIds": []}, "leaseIds", [None, "x", 5, {}]),
    ("POST", "/commands/leases/renew", {"leaseIds": []}, "leaseSeconds", SECONDS),
    ("PUT", "/agents/agent-1", AGENT, "deploymentId", NAMES),
    ("PUT", "/agents/agent-1", AGENT, "version", [5, None, {}]),
    ("PUT", "/agents/agent-1", AGENT, "hostname", [5, None, {}]),
    ("PUT", "/agents/agent-1", AGENT, "handlers", [5, None, {}, "x"]),
]


def with_field(body: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """The body with another value somewhere in it."""
    name, _, rest = field.partition(".")
    changed = with_field(body[name], rest, value) if rest else value
    return body | {name: changed}


@pytest.mark.parametrize(
    ("method", "path", "body", "field", "values"),
    BAD_FIELDS,
    ids=[f"{path} {field}" for _, path, _, field, _ in BAD_FIELDS],
)
async def test_a_bad_value_is_refused_by_the_name_of_its_field(
    client: Client, method: str, path: str, body: dict[str, Any], field: str, values: list[Any]
) -> None:
    for value in values:
        answer = await client.call(method, f"/v1{path}", with_field(body, field, value))
        assert answer.status == 400, (value, answer)
        assert answer.code == "INVALID_COMMAND", (value, answer)
        assert field.rpartition(".")[2] in answer.json["message"], (value, answer)

    assert await nothing_is_stored(client)


@pytest.mark.parametrize("field", ["deploymentId", "command", "params"])
async def test_a_field_that_is_missing_is_named(client: Client, field: str) -> None:
    body = {name: value for name, value in CREATE.items() if name != field}

    answer = await client.call("POST", "/v1/commands", body)

    assert_refused(answer, None)
    assert field in answer.json["message"]
    assert await nothing_is_stored(client)


@pytest.mark.parametrize(
    "size", [size for size in SIZES if size not in ("NaN",)], ids=lambda size: str(size)[:20]
)
async def test_a_size_that_is_none_is_refused(client: Client, size: Any) -> None:
    params = {"mode": "storage", "size": size}

    created = await client.call("POST", "/v1/commands", CREATE | {"params": params})
    completed = await client.call("POST", "/v1/commands/cmd_x/upload-complete", {"size": size})

    assert created.status == completed.status == 400
    assert "size" in created.json["message"]
    assert "size" in completed.json["message"]
    assert await nothing_is_stored(client)


async def test_a_size_above_what_may_be_uploaded_is_refused_at_once(client: Client) -> None:
    params = {"mode": "storage", "size": 2**60}

    answer = await client.call("POST", "/v1/commands", CREATE | {"params": params})

    assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")
    assert await nothing_is_stored(client)


async def test_a_number_with_60_000_digits_is_refused_in_bounded_time(client: Client) -> None:
    data = b'{"deploymentId": "own", "maxLeases": ' + b"9" * 60_000 + b"}"

    assert_refused(await client.call("POST", "/v1/commands/leases", data=data), None)


@pytest.mark.parametrize("name", ["a:b", ":"])
async def test_a_target_with_a_colon_has_an_error_of_its_own(client: Client, name: str) -> None:
    answer = await client.call("POST", "/v1/commands", CREATE | {"targetResourceId": name})

    assert_refused(answer, None, "COMMAND_TARGET_ID_INVALID")
    assert await nothing_is_stored(client)


async def test_a_sender_cannot_point_agents_at_a_url_of_its_own(client: Client) -> None:
    params = {
        "mode": "storage",
        "size": 3,
        "storageGetRequest": {
            "backend": {"type": "http", "url": "http://evil", "method": "GET", "headers": {}},
            "expiration": "2030-01-01T00:00:00Z",
            "operation": "get",
            "path": "x",
        },
    }

    answer = await client.call("POST", "/v1/commands", CREATE | {"params": params})

    assert_refused(answer, "params.storageGetRequest")
    assert await nothing_is_stored(client)


async def test_unknown_fields_are_ignored_and_null_is_absent(client: Client) -> None:
    body = CREATE | {"deadline": None, "idempotencyKey": None, "futureField": {"x": [1]}}

    assert (await client.call("POST", "/v1/commands", body)).status == 200


async def test_a_body_needs_no_content_type(client: Client) -> None:
    for content_type in ("text/plain", "application/xml", "application/json; charset=latin-1", ""):
        answer = await client.call(
            "POST",
            "/v1/commands",
            data=json.dumps(CREATE).encode(),
            headers={"Content-Type": content_type},
        )
        assert answer.status == 200, content_type


# responses


BAD_RESPONSES: list[Any] = [
    {},
    {"status": "pending"},
    {"status": "success"},
    {"status": "success", "response": {"mode": "inline"}},
    {"status": "success", "response": inline(b"") | {"inlineBase64": "*"}},
    {"status": "success", "response": {"mode": "storage", "size": -1}},
    {"status": "success", "response": {"mode": "storage", "size": 5, "storagePutUsed": True}},
    {"status": "error"},
    {"status": "error", "code": "X"},
    {"status": "error", "code": 5, "message": "x"},
    {"status": "error", "code": "X", "message": "x", "details": {"an": "object"}},
]


async def test_a_bad_response_is_refused_and_leaves_the_command_to_a_good_one(
    client: Client,
) -> None:
    command_id = await client.create()
    (lease,) = await client.lease()
    url = lease["envelope"]["responseHandling"]["submitResponseUrl"]

    for response in BAD_RESPONSES:
        answer = await client.call("PUT", url, response, token="")
        assert answer.status == 400, (response, answer)
        assert (await client.status(command_id))["state"] == "DISPATCHED"

    assert (await client.call("PUT", url, success(), token="")).status == 200
    assert (await client.status(command_id))["state"] == "SUCCEEDED"


# queries and paths


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=1&limit=2", "limit"),
        ("state=RUNNING", "state"),
        ("state=pending", "state"),
        ("state=", "state"),
        ("cursor=x", "cursor"),
        ("cursor=-1", "cursor"),
        (f"cursor={'9' * 30}", "cursor"),
        ("deploymentId=", "deploymentId"),
        (f"deploymentId={LONG}", "deploymentId"),
        ("deploymentId=a%00b", "deploymentId"),
        ("command=%0a", "command"),
        ("command=%ff", "query"),
        ("&".join(f"x{n}=1" for n in range(60)), "query"),
    ],
)
async def test_a_bad_query_is_refused_by_the_name_of_its_field(
    client: Client, query: str, field: str
) -> None:
    assert_refused(await client.call("GET", f"/v1/commands?{query}"), field)


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "1e1", "", "x", "1&waitSeconds=2"])
async def test_bad_wait_seconds_of_a_status_are_refused(client: Client, wait: str) -> None:
    command_id = await client.create()

    answer = await client.call("GET", f"/v1/commands/{command_id}?waitSeconds={wait}")

    assert_refused(answer, "waitSeconds")


@pytest.mark.parametrize("agent_id", [LONG, "a%00b", "%0a"])
async def test_a_bad_agent_id_is_refused(client: Client, agent_id: str) -> None:
    assert_refused(await client.call("PUT", f"/v1/agents/{agent_id}", AGENT), "agentId")
    assert await nothing_is_stored(client)


@pytest.mark.parametrize(
    "command_id",
    ["cmd_x", "%00", "..", "%2e%2e", "a%2Fb", "x" * 5000, "%F0%9F%92%A9", "'; DROP TABLE commands"],
)
async def test_an_id_that_is_none_is_not_found_by_any_route(
    client: Client, command_id: str
) -> None:
    path = f"/v1/commands/{command_id.replace(' ', '%20')}"

    answers = [
        await client.call("GET", path),
        await client.call("GET", f"{path}/payload"),
        await client.call("PUT", f"{path}/payload", {"params": inline(b"x")}),
        await client.call("POST", f"{path}/upload-complete", {"size": 3}),
        await client.call("POST", f"{path}/cancel"),
        await client.call("PUT", f"{path}/response", success()),
        await client.call("PUT", f"{path}/response", success(b"x" * 200_000)),
    ]

    assert {(answer.status, answer.code) for answer in answers} == {(404, "COMMAND_NOT_FOUND")}


@pytest.mark.parametrize("lease_id", ["lease_x", "%00", "..", "x" * 5000])
async def test_a_lease_that_is_none_is_not_found(client: Client, lease_id: str) -> None:
    answer = await client.call("POST", f"/v1/commands/leases/{lease_id}/release")

    assert (answer.status, answer.code) == (404, "LEASE_NOT_FOUND")


@pytest.mark.parametrize("lease_id", ["..%2F..%2Fetc", "", "a%00", "x" * 200])
async def test_a_response_under_a_lease_that_cannot_be_is_refused(
    client: Client, lease_id: str
) -> None:
    command_id = await client.create()
    await client.lease()

    answer = await client.call(
        "PUT", f"/v1/commands/{command_id}/response?lease={lease_id}", success(b"x" * 200_000)
    )

    assert (answer.status, answer.code) == (404, "LEASE_NOT_FOUND")
    assert (await client.status(command_id))["state"] == "DISPATCHED"


@pytest.mark.parametrize(
    "body", [None, b"", b"not json", b"[]", b"{}", b"null", b'{"reason": 5}', b"\xff" * 1000]
)
async def test_a_release_takes_any_body(client: Client, body: bytes | None) -> None:
    await client.create()
    (lease,) = await client.lease()

    answer = await client.call("POST", f"/v1/commands/leases/{lease['leaseId']}/release", data=body)

    assert (answer.status, answer.body) == (200, b"")
    assert (await client.lease())[0]["attempt"] == 2


async def test_a_drains_release_costs_no_attempt(client: Client) -> None:
    await client.create()
    (lease,) = await client.lease()

    path = f"/v1/commands/leases/{lease['leaseId']}/release"
    assert (await client.call("POST", path, {"reason": "drain"})).status == 200

    assert (await client.lease())[0]["attempt"] == 1


# routes and methods


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v2/commands", "/v1/nothing", "/v1/commands/a/b/c", "/v1/blobs", "/favicon.ico"],
)
async def test_an_unknown_route_has_the_json_error_body(client: Client, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = await client.call(method, path, token="")
        assert (answer.status, answer.code) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/commands", "GET, HEAD, POST"),
        ("PATCH", "/v1/commands/cmd_x", "GET, HEAD"),
        ("GET", "/v1/commands/leases", "POST"),
        ("GET", "/v1/commands/cmd_x/response", "PUT"),
        ("OPTIONS", "/v1/agents/a", "PUT"),
        ("TRACE", "/healthz", "GET, HEAD"),
    ],
)
async def test_an_unknown_method_has_the_json_error_body_and_says_what_there_is(
    client: Client, method: str, path: str, allow: str
) -> None:
    answer = await client.call(method, path)

    assert (answer.status, answer.headers["Allow"]) == (405, allow)
    assert answer.code == "METHOD_NOT_ALLOWED"


async def test_a_method_that_http_does_not_know_is_refused(client: Client) -> None:
    answer = await client.call("BREW", "/healthz")

    assert (answer.status, answer.code) == (400, "BAD_REQUEST")


# sizes


async def test_a_body_above_the_limit_is_refused_before_it_is_read(serve: Serve) -> None:
    async with serve(http={"max_body_bytes": 2048}) as client:
        for data in (b"x" * 2049, b"{" * 100_000):
            answer = await client.call("POST", "/v1/commands", data=data)
            assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")

        assert (await client.call("POST", "/v1/commands", data=b"x" * 2048)).status == 400
        assert await nothing_is_stored(client)


async def test_a_body_of_unknown_length_is_cut_off_at_the_limit(serve: Serve) -> None:
    async with serve(http={"max_body_bytes": 2048}) as client:

        async def chunks() -> Any:
            for _ in range(3):
                yield b"x" * 1000

        answer = await client.call("POST", "/v1/commands", data=chunks())

        assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")
        assert await nothing_is_stored(client)


async def test_a_compressed_body_is_refused_and_never_unpacked(client: Client) -> None:
    data = gzip.compress(json.dumps(CREATE).encode())

    answer = await client.call(
        "POST", "/v1/commands", data=data, headers={"Content-Encoding": "gzip"}
    )

    assert_refused(answer, "Content-Encoding")
    assert await nothing_is_stored(client)


async def test_an_inline_body_above_the_inline_limit_is_promoted(client: Client) -> None:
    data = bytes(range(256)) * 1000

    command_id = await client.create(params=inline(data))
    (lease,) = await client.lease()

    params = lease["envelope"]["params"]
    assert (params["mode"], params["size"]) == ("storage", len(data))
    fetched = await client.call("GET", params["storageGetRequest"]["backend"]["url"], token="")
    assert fetched.body == data
    assert (await client.status(command_id))["state"] == "DISPATCHED"
