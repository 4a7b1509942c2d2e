"""Envelopes and answers that lie. Each row is refused, and a good command still runs after it.

One agent takes all rows of a group, one after the other: what a row breaks shows at the next.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from arc_agent import handler
from tests.support.hostile_server import Bystander, HostileServer, Lie, endless, raw, says
from tests.support.scripted_server import inline
from tests.support.waiting import until

Start = Callable[..., Any]
Change = Callable[[dict[str, Any]], Any]
MiB = 1024 * 1024


@handler("good")
def good(params: object) -> str:
    return "done"


@pytest.fixture
async def hostile() -> AsyncIterator[HostileServer]:
    async with HostileServer() as running:
        yield running


@pytest.fixture
async def bystander() -> AsyncIterator[Bystander]:
    running = await Bystander().start()
    yield running
    await running.stop()


def at(*path: str, value: Any) -> Change:
    """Put a value where a path of a lease leads."""

    def change(lease: dict[str, Any]) -> None:
        tree = lease
        for name in path[:-1]:
            tree = tree[name]
        tree[path[-1]] = value

    return change


def envelope(name: str, value: Any) -> Change:
    """Change a field of the envelope."""
    return at("envelope", name, value=value)


def handling(name: str, value: Any) -> Change:
    """Change how the response is to be handed in."""
    return at("envelope", "responseHandling", name, value=value)


def submit_to(url: str) -> Change:
    """Have the response sent there."""
    return handling("submitResponseUrl", url)


def params(value: Any) -> Change:
    """Change the params."""
    return envelope("params", value)


def without(*path: str) -> Change:
    """Take a field away."""

    def change(lease: dict[str, Any]) -> None:
        tree = lease
        for name in path[:-1]:
            tree = tree[name]
        del tree[path[-1]]

    return change


def both(name: str, value: Any) -> Change:
    """Change a field of the lease and of its envelope."""

    def change(lease: dict[str, Any]) -> None:
        lease[name] = lease["envelope"][name] = value

    return change


# What is answered with INVALID_ENVELOPE

WRONG: dict[str, Change] = {
    "another protocol": envelope("protocol", "arc.v2"),
    "a protocol in capitals": envelope("protocol", "ARC.V1"),
    "another deployment": envelope("deploymentId", "dep-2"),
    "no deployment": envelope("deploymentId", ""),
    "a deployment with a NUL": envelope("deploymentId", "dep-1\0"),
    "another target": envelope("target", {"resourceId": "other", "resourceType": "daemon"}),
    "a target of no kind": envelope("target", {"resourceId": "default", "resourceType": "cat"}),
    "a target that is text": envelope("target", "default"),
    "another command's id": envelope("commandId", "cmd_another"),
    "no command": envelope("command", ""),
    "a command that is a number": envelope("command", 7),
    "a command that is null": envelope("command", None),
    "a command with a line feed": envelope("command", "good\nlevel=critical"),
    "a command with an escape": envelope("command", "good\x1b[2J"),
    "a command of 300 characters": envelope("command", "g" * 300),
    "a command of a megabyte": envelope("command", "g" * MiB),
    "attempt 0": both("attempt", 0),
    "attempt -1": both("attempt", -1),
    "attempt 2^63": both("attempt", 2**63),
    "attempt 2^200": both("attempt", 2**200),
    "attempt as text": both("attempt", "1"),
    "a deadline without an offset": envelope("deadline", "2030-01-01T00:00:00"),
    "a deadline that is a number": envelope("deadline", 4102444800),
    "a deadline on the 30th of February": envelope("deadline", "2030-02-30T00:00:00Z"),
    "an end that is no time": at("leaseExpiresAt", value="soon"),
    "a length that is text": at("leaseSeconds", value="60"),
    "no params": without("envelope", "params"),
    "params that are text": params("{}"),
    "params of no mode": params({"inlineBase64": "e30="}),
    "params of a mode to come": params({"mode": "carrier-pigeon"}),
    "base64 that is none": params({"mode": "inline", "inlineBase64": "****"}),
    "base64 without padding": params({"mode": "inline", "inlineBase64": "e30"}),
    "base64 of the URL alphabet": params({"mode": "inline", "inlineBase64": "_-8="}),
    "base64 with line feeds": params({"mode": "inline", "inlineBase64": "e3\n0="}),
    "base64 that is not canonical": params({"mode": "inline", "inlineBase64": "e31="}),
    "base64 beyond ASCII": params({"mode": "inline", "inlineBase64": "ééé="}),
    "stored params and no place": params({"mode": "storage", "size": 1}),
    "a size below 0": params({"mode": "storage", "size": -1}),
    "a size of 2^63": params({"mode": "storage", "size": 2**63}),
    "a size and a half": params({"mode": "storage", "size": 1.5}),
    "maxInlineBytes as text": handling("maxInlineBytes", "many"),
    "no upload request": without("envelope", "responseHandling", "storageUploadRequest"),
    "headers that are a list": at(
        "envelope",
        "responseHandling",
        "storageUploadRequest",
        "backend",
        "headers",
        value=["Host: elsewhere"],
    ),
    "a backend of no kind": at(
        "envelope", "responseHandling", "storageUploadRequest", "backend", "type", value="ftp"
    ),
}


async def test_what_an_envelope_says_is_looked_at_before_anything_is_done(
    hostile: HostileServer, start: Start, logged: Any
) -> None:
    agent = await start(hostile, good, target={"resource_id": "default"})
    for row, change in WRONG.items():
        code = await answered(hostile, change, row)
        assert code == "INVALID_ENVELOPE", row
        await still_works(hostile, agent, row)

    assert longest_line(logged) < 2_000


# Where responses must not go: answered by the bearer token's way, to the server

METADATA = [
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.169.254:80/",
    "http://169.254.169.254./",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://0xa9.0xfe.0xa9.0xfe/",
    "http://0251.0376.0251.0376/",
    "http://169.254.43518/",
    "http://169.16689662/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[::a9fe:a9fe]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::a9fe:a9fe]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fd00:0ec2:0:0:0:0:0:254]/",
    "http://[fd00:ec2::254%25eth0]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://metadata.google.internal/",
    "http://METADATA.GOOGLE.INTERNAL./",
    "http://metadata/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
]
LOOPBACK = [
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://127.000.000.001:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://127.8.9.10:{port}/",
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://[::1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[::]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST.:{port}/",
    "http://user:secret@127.0.0.1:{port}/",
    "http://arc.example.com@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@arc.example.com/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://127。0。0。1:{port}/",
    "http://127%2e0%2e0%2e1:{port}/",
    "http:\\\\127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/ http://arc.example.com/",
    "http://127.0.0.1:{port}/\r\nHost: elsewhere",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\t/",
    "http://127.0.0.1\0:{port}/",
]
SCHEMES = [
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/shadow",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_x",
    "dict://127.0.0.1:{port}/",
    "ldap://127.0.0.1:{port}/",
    "data:text/plain,hello",
    "javascript:alert(1)",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "ws://127.0.0.1:{port}/",
    "jar:http://127.0.0.1:{port}/!/",
    "",
    "http://",
    "http://:80/",
    "http://[/",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:-1/",
    "http://10.0.0.1/",
    "http://192.168.0.1/",
    "http://172.16.0.1/",
    "http://100.64.0.1/",
    "http://[fc00::1]/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
]


async def test_a_response_goes_nowhere_but_where_it_may(
    hostile: HostileServer, start: Start, bystander: Bystander
) -> None:
    agent = await start(hostile, good)
    for form in [*METADATA, *LOOPBACK, *SCHEMES]:
        url = form.replace("{port}", str(bystander.port))
        assert await answered(hostile, submit_to(url), form) == "INVALID_ENVELOPE", form
    await still_works(hostile, agent, "addresses")

    assert bystander.visits == []


async def test_params_are_fetched_from_nowhere_but_where_they_may_be(
    hostile: HostileServer, start: Start, bystander: Bystander
) -> None:
    agent = await start(hostile, good)
    for form in [*METADATA, *LOOPBACK, *SCHEMES]:
        url = form.replace("{port}", str(bystander.port))
        change = params(stored_at(hostile, url))
        assert await answered(hostile, change, form) == "INVALID_ENVELOPE", form
    await still_works(hostile, agent, "params")

    assert bystander.visits == []


async def test_a_result_is_uploaded_to_nowhere_but_where_it_may_be(
    hostile: HostileServer, start: Start, bystander: Bystander
) -> None:
    @handler("large")
    def large(params: object) -> bytes:
        return b"x" * 5_000

    agent = await start(hostile, good, large)
    for form in [METADATA[0], LOOPBACK[0], LOOPBACK[20], SCHEMES[0], SCHEMES[9]]:
        url = form.replace("{port}", str(bystander.port))
        upload = hostile.presigned("PUT", "x")
        upload["backend"]["url"] = url
        number = len(hostile.responses()) + 1
        hostile.send("large", change=handling("storageUploadRequest", upload))
        response = await hostile.response(number)
        # In every case the server has the answer, and the other place has nothing.
        assert response.get("code") == "INVALID_ENVELOPE" or len(inline(response)) == 5_000, form
    await still_works(hostile, agent, "uploads")

    assert bystander.visits == []


async def test_a_token_stays_with_its_server_wherever_a_response_goes(
    hostile: HostileServer, start: Start, bystander: Bystander
) -> None:
    agent = await start(
        hostile, good, server={"token": "t0ps3cret"}, transfer={"allow_hosts": ["127.0.0.1"]}
    )
    hostile.send("good", change=submit_to(f"{bystander.url}/response?response_token=x"))
    await until(lambda: bool(bystander.visits))
    await still_works(hostile, agent, "another origin")

    assert all(b"t0ps3cret" not in visit for visit in bystander.visits)
    assert bystander.visits[0].startswith(b"PUT /response?response_token=x ")
    assert hostile.seen("leases")[0].headers["authorization"] == "Bearer t0ps3cret"


# What becomes of bodies that lie

REFUSED = {"INVALID_ENVELOPE", "STORAGE_OPERATION_FAILED", "UNKNOWN_COMMAND", "released"}
BOMB = gzip.compress(b"0" * (8 * MiB))


def lies(bystander: Bystander) -> dict[str, Lie]:
    """Answers to the GET of params of two bytes."""
    return {
        "a redirect to metadata": redirect("http://169.254.169.254/latest/meta-data/"),
        "a redirect to a file": redirect("file:///etc/passwd"),
        "a redirect to a neighbour": redirect(bystander.url),
        "a redirect to itself": redirect("?again"),
        "a redirect to nothing": redirect(""),
        "a redirect that keeps the method": redirect(bystander.url, 307),
        "a gzip bomb": says(BOMB, headers={"Content-Encoding": "gzip"}),
        "a bomb twice wrapped": says(
            gzip.compress(BOMB), headers={"Content-Encoding": "gzip, gzip"}
        ),
        "deflate": says(b"x", headers={"Content-Encoding": "deflate"}),
        "an unknown encoding": says(b"{}", headers={"Content-Encoding": "rot13"}),
        "a body without end": endless(b"0" * 65_536),
        "more than was said": says(b"{}   "),
        "less than was said": says(b"{"),
        "nothing": says(b""),
        "a length that is too long": raw(head(10), b"{}"),
        "a length that is too short": raw(head(1), b"{}"),
        "a length below 0": raw(head(-1), b"{}"),
        "a length that is no number": raw(b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}"),
        "two lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}"),
        "a length and chunks": raw(
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{"
        ),
        "chunks that stop": raw(CHUNKED, b"1\r\n{\r\n"),
        "a chunk that is longer than it says": raw(CHUNKED, b"1\r\n{{{{{\r\n0\r\n\r\n"),
        "a chunk of no size": raw(CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"),
        "a chunk as large as can be said": raw(CHUNKED, b"ffffffffffffffff\r\n{}"),
        "a chunk without end of its size": raw(CHUNKED, b"0" * 100_000),
        "a header without end": raw(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 300_000),
        "ten thousand headers": raw(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 10_000, b"\r\n"),
        "no HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
        "another HTTP": raw(b"HTTP/9.9 200 OK\r\n\r\n{}"),
        "a status of four digits": raw(b"HTTP/1.1 2000 OK\r\n\r\n{}"),
        "hanging up": raw(),
        "a part that was not asked for": says(
            b"{}", status=206, headers={"Content-Range": "bytes 5-6/9"}
        ),
        "a part of no place": says(b"{}", status=206),
        "a part at a place without end": says(
            b"{}", status=206, headers={"Content-Range": f"bytes {'9' * 5_000}-0/*"}
        ),
        "not there": says(b"", status=404),
        "out of order": says(b"", status=500),
    }


async def test_params_that_lie_are_refused_or_given_back(
    hostile: HostileServer, start: Start, bystander: Bystander
) -> None:
    agent = await start(
        hostile,
        good,
        max_concurrent=50,
        transfer={"give_up_seconds": 0.6, "allow_hosts": ["127.0.0.1"]},
    )
    rows = lies(bystander)
    sent = {}
    for row, lie in rows.items():
        name = row.replace(" ", "-")
        hostile.lies[name] = lie
        body = {"mode": "storage", "size": 2, "storageGetRequest": hostile.presigned("GET", name)}
        sent[row] = hostile.send("good", command_id=f"cmd_{name}", change=params(body))
    await still_works(hostile, agent, "all of them at once")
    for row, lease_id in sent.items():
        assert await outcome(hostile, lease_id, f"cmd_{row.replace(' ', '-')}") in REFUSED, row
    await still_works(hostile, agent, "bodies")

    assert bystander.visits == []
    await until(lambda: temporary_files(agent) == [])


REQUESTS: dict[str, Change] = {
    "another method": lambda request: request["backend"].update(method="DELETE"),
    "a method with a line feed": lambda request: request["backend"].update(method="GET\r\nX: y"),
    "a header with a line feed": lambda request: request["backend"].update(
        headers={"x": "y\r\nAuthorization: z"}
    ),
    "a header's name with a line feed": lambda request: request["backend"].update(
        headers={"x\r\ny": "z"}
    ),
    "a header that says who is asked": lambda request: request["backend"].update(
        headers={"Host": "metadata"}
    ),
    "a header that frames": lambda request: request["backend"].update(
        headers={"Transfer-Encoding": "chunked"}
    ),
    "a header that is longer than it is": lambda request: request["backend"].update(
        headers={"content-length": "5"}
    ),
    "a header that asks for more": lambda request: request["backend"].update(
        headers={"Upgrade": "h2c"}
    ),
    "a file of this host": lambda request: request.update(
        backend={"type": "local", "filePath": "/etc/passwd", "operation": "get"}
    ),
    "a file by way of ..": lambda request: request.update(
        backend={"type": "local", "filePath": "../../../etc/passwd", "operation": "get"}
    ),
    "a file with a NUL": lambda request: request.update(
        backend={"type": "local", "filePath": "/etc/passwd\0", "operation": "get"}
    ),
    "a directory": lambda request: request.update(
        backend={"type": "local", "filePath": "/", "operation": "get"}
    ),
}


async def test_presigned_requests_that_lie_are_refused(
    hostile: HostileServer, start: Start
) -> None:
    agent = await start(hostile, good, transfer={"give_up_seconds": 0.6})
    hostile.blobs["there"] = b"{}"
    for row, change in REQUESTS.items():
        request = hostile.presigned("GET", "there")
        change(request)
        body = {"mode": "storage", "size": 2, "storageGetRequest": request}
        assert await answered(hostile, params(body), row) in REFUSED, row
    await still_works(hostile, agent, "requests")

    assert hostile.seen("get_blob") == []


# Answers of the server itself

LEASE_ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"<xml/>",
    "half": b'{"leases": [',
    "not UTF-8": b'{"leases": ["\xff\xfe"]}',
    "a list": b"[]",
    "no leases": b'{"lease": []}',
    "leases that are null": b'{"leases": null}',
    "leases that are numbers": b'{"leases": [1, 2.5, -3]}',
    "leases that are lists": b'{"leases": [[], [[]], [{}]]}',
    "leases without anything": b'{"leases": [{}, {}, {}]}',
    "cancelled that are numbers": b'{"leases": [], "cancelled": [1]}',
    "cancelled without a holder": b'{"leases": [], "cancelled": ["", "..", "\\u0000"]}',
    "depth": b'{"leases": [' + b"[" * 200_000 + b"]" * 200_000 + b"]}",
    "depth within a field": b'{"leases": [{"leaseId": ' + b'{"a":' * 100_000 + b"1",
    "the same key twice": b'{"leases": [{"leaseId": "a", "leaseId": "b"}], "leases": []}',
    "half a surrogate": b'{"leases": [{"leaseId": "\\ud800"}]}',
    "NaN": b'{"leases": [{"leaseSeconds": NaN}]}',
    "infinity": b'{"leases": [{"leaseSeconds": 1e999}]}',
    "a number of a million digits": b'{"leases": [{"attempt": ' + b"9" * MiB + b"}]}",
    "ids that are paths": b'{"leases": [{"leaseId": "..", "commandId": "../../agents/x"}]}',
    "ids of a megabyte": b'{"leases": [{"leaseId": "' + b"l" * MiB + b'", "commandId": "c"}]}',
    "four million times nothing": b'{"leases": [' + b"{}," * (4 * MiB) + b"{}]}",
    "more than any answer may be": b'{"leases": [' + b" " * (25 * MiB) + b"]}",
}


async def test_answers_to_a_lease_request_that_lie_are_logged_and_asked_again(
    hostile: HostileServer, start: Start, logged: Any
) -> None:
    agent = await start(hostile, good, max_concurrent=1)
    for row, body in LEASE_ANSWERS.items():
        hostile.answer(says(body, headers={"Content-Type": "application/json"}))
        await still_works(hostile, agent, row)
    for lie in [
        says(gzip.compress(b" " * (100 * MiB)), headers={"Content-Encoding": "gzip"}),
        says(b"{}", headers={"Content-Encoding": "br"}),
        says(b"", status=302, headers={"Location": "http://169.254.169.254/"}),
        says(b"", status=204),
        says(b'{"leases": []}', status=201),
        *(says(b'{"x": ' + b"[" * 100_000, status=status) for status in (400, 401, 403, 404, 503)),
        says(b'{"leases": []}', headers={"Date": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"}),
        says(b'{"leases": []}', headers={"Date": f"Mon, 01 Jan 2024 00:00:00 +{'9' * 20}"}),
        says(b'{"leases": []}', headers={"Date": "Mon, 01 Jan 0001 00:00:00 +2359"}),
        endless(b" " * MiB),
        raw(head(10), b"{}"),
        raw(CHUNKED, b"zz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 100_000, b"\r\n"),
    ]:
        hostile.answer(lie)
        await still_works(hostile, agent, "an HTTP answer")

    assert longest_line(logged) < 2_000
    assert not any("/agents/x" in each.path for each in hostile.seen("release"))


async def test_leases_that_nobody_asked_for_harm_nothing(
    hostile: HostileServer, start: Start, logged: Any
) -> None:
    agent = await start(hostile, good, max_concurrent=2)
    hostile.send("good")
    lease = hostile._queue.popleft()
    lying = [
        {**lease, "leaseId": f"l{n}", "commandId": f"c{n}"}
        | {"envelope": {**lease["envelope"], "commandId": f"c{n}"}}
        for n in range(10_000)
    ]
    for count_of_leases in (200, 10_000):
        some = lying[:count_of_leases]
        hostile.answer(says(json.dumps({"leases": some}).encode()))
        await still_works(hostile, agent, f"{count_of_leases} leases")

    assert any(each["event"] == "lease.too_many" for each in logged)
    assert len(hostile.seen("release")) <= 110


LENGTHS: dict[str, Any] = {
    "no time": 0,
    "less than no time": -60,
    "next to no time": -1e308,
    "for ever": 1e308,
    "until the sun is gone": 2**62,
}


async def test_a_lease_of_no_sane_length_lasts_as_long_as_was_asked_for(
    hostile: HostileServer, start: Start
) -> None:
    agent = await start(hostile, good)
    for row, seconds in LENGTHS.items():
        number = len(hostile.responses()) + 1
        hostile.send("good", change=at("leaseSeconds", value=seconds))
        assert inline(await hostile.response(number)) == b'"done"', row
    await still_works(hostile, agent, "lengths")

    assert len(hostile.seen("renew")) < 5


async def test_a_renewal_of_no_sane_length_is_none(hostile: HostileServer, start: Start) -> None:
    release = asyncio.Event()

    @handler("wait")
    async def wait() -> str:
        await release.wait()
        return "waited"

    hostile.lease_seconds = 0.6
    agent = await start(hostile, good, wait, lease={"seconds": 1})
    hostile.send("wait")
    await hostile.until(lambda: len(hostile.seen("renew")) >= 1)
    hostile.lease_seconds = -1e300
    count_before = len(hostile.seen("renew"))
    await hostile.until(lambda: len(hostile.seen("renew")) >= count_before + 1)
    hostile.lease_seconds = 60
    release.set()
    await hostile.response()
    await still_works(hostile, agent, "renewals")


async def test_deadlines_at_the_ends_of_time_are_judged_like_others(
    hostile: HostileServer, start: Start
) -> None:
    agent = await start(hostile, good)
    for deadline in ["1970-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z"]:
        assert await answered(hostile, envelope("deadline", deadline), deadline) == (
            "HANDLER_TIMEOUT"
        )
    for deadline in ["9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59.999999Z"]:
        number = len(hostile.responses()) + 1
        hostile.send("good", change=envelope("deadline", deadline))
        assert inline(await hostile.response(number)) == b'"done"', deadline
    await still_works(hostile, agent, "deadlines")


SAID: dict[str, Lie] = {
    "a redirect": says(b"", status=302, headers={"Location": "http://169.254.169.254/"}),
    "a redirect that keeps the body": says(b"", status=308, headers={"Location": "/elsewhere"}),
    "an unknown status": says(b"", status=299),
    "a word without end": endless(b"0" * 65_536),
    "a bomb": says(BOMB, headers={"Content-Encoding": "gzip"}),
    "a length that is too long": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
    "hanging up": raw(),
    **{
        f"depth under {status}": says(b'{"code": ' + b'[{"a":' * 50_000, status=status)
        for status in (400, 401, 403, 404, 409, 410, 429, 500, 503)
    },
}


async def test_what_is_said_to_a_response_that_lies_costs_no_result(
    hostile: HostileServer, start: Start, logged: Any
) -> None:
    agent = await start(hostile, good)
    for row, lie in SAID.items():
        hostile.response_lies.append(lie)
        await still_works(hostile, agent, row)
    await hostile.until(lambda: not hostile.response_lies)

    await until(lambda: len(set(delivered(logged))) == len(SAID))
    assert len(delivered(logged)) == len(SAID)


# Helpers

_numbers = count(1)


def head(length: int) -> bytes:
    """The head of an answer that says how long it is."""
    return f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def redirect(to: str, status: int = 302) -> Lie:
    """An answer that leads elsewhere."""
    return says(b"", status=status, headers={"Location": to})


def stored_at(server: HostileServer, url: str) -> dict[str, Any]:
    """Params that are kept at a URL."""
    request = server.presigned("GET", "x")
    request["backend"]["url"] = url
    return {"mode": "storage", "size": 2, "storageGetRequest": request}


async def answered(server: HostileServer, change: Change, row: str) -> str:
    """Send a lease that was changed; the code of its response, or that it was given back."""
    command_id = f"cmd_row_{next(_numbers)}"
    lease_id = server.send("good", command_id=command_id, change=change)
    return await outcome(server, lease_id, command_id)


async def outcome(server: HostileServer, lease_id: str, command_id: str) -> str:
    """Return what has become of a lease."""

    def responses() -> list[Any]:
        return server.responses(command_id)

    def is_released() -> bool:
        return any(f"/{lease_id}/" in each.path for each in server.seen("release"))

    await server.until(lambda: bool(responses()) or is_released())
    return "released" if not responses() else responses()[0].get("code", "success")


async def still_works(server: HostileServer, agent: Any, row: str) -> None:
    """A good command runs to its end on the same agent."""
    command_id = f"cmd_good_{next(_numbers)}"
    server.send("good", command_id=command_id)
    await server.until(lambda: bool(server.responses(command_id)) or agent.task.done())
    assert not agent.task.done(), f"the agent ended after: {row}"
    assert inline(server.responses(command_id)[0]) == b'"done"', row


def longest_line(events: list[Any]) -> int:
    """Return how long the longest line of the log is."""
    return max(len(json.dumps(each, default=str)) for each in events)


def delivered(events: list[Any]) -> list[str]:
    """The commands whose responses were handed in."""
    return [each["command_id"] for each in events if each["event"] == "response.delivered"]


def temporary_files(agent: Any) -> list[Path]:
    """Return what is left of commands."""
    return [each for each in agent.directory.glob("tmp/*") if each.name.startswith("run-")]
