"""Handlers that ask a service: a real one on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from arc_agent.config.declared_handlers import HttpSection
from arc_agent.handlers.context import CommandFailed
from arc_agent.handlers.declared.http import http_handler
from tests.support.declared_runs import Run
from tests.support.waiting import until

NAME = {"type": "string", "maxLength": 30}


class Service:
    """What it was asked, and what it answers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes, Any]] = []
        self.status = 200
        self.body: bytes | list[bytes] = b'{"ok": true}'
        self.headers: dict[str, str] = {}
        self.url = ""
        self.release = asyncio.Event()
        self.was_left = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.method, request.raw_path, await request.read(), request.headers))
        if request.path == "/slow":
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.was_left.set()
                raise
        if isinstance(self.body, list):
            response = web.StreamResponse(status=self.status, headers=self.headers)
            await response.prepare(request)
            for part in self.body:
                await response.write(part)
            return response
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    found = Service()
    app = web.Application()
    app.router.add_route("*", r"/{tail:[\s\S]*}", found.answer)
    server = TestServer(app)
    await server.start_server()
    found.url = f"http://127.0.0.1:{server.port}"
    try:
        yield found
    finally:
        found.release.set()
        await server.close()


async def ask(service: Service, tmp_path: Path, given: Any = None, **section: Any) -> Any:
    declared = HttpSection(**{"url": service.url, **section})
    return await Run(http_handler("x", declared), tmp_path / "run", given)()


async def test_json_is_handed_on(service: Service, tmp_path: Path) -> None:
    service.body = '{"name": "Zoë"}'.encode()

    assert await ask(service, tmp_path, path="/status") == {"name": "Zoë"}
    assert service.seen[0][:3] == ("GET", "/status", b"")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("plain", "/v1/caches/plain/purge"),
        ("a/b", "/v1/caches/a%2Fb/purge"),
        ("a?b#c&d=e", "/v1/caches/a%3Fb%23c%26d%3De/purge"),
        ("%2e%2e", "/v1/caches/%252e%252e/purge"),
        ("..;/@evil.example:80", "/v1/caches/..%3B%2F%40evil.example%3A80/purge"),
        ("a\r\nX: y", "/v1/caches/a%0D%0AX%3A%20y/purge"),
        ("é", "/v1/caches/%C3%A9/purge"),
    ],
)
async def test_a_param_is_one_segment_of_the_path_whatever_it_holds(
    service: Service, tmp_path: Path, value: str, path: str
) -> None:
    await ask(
        service,
        tmp_path,
        {"a": value},
        url=f"{service.url}/v1/",
        method="POST",
        path="/caches/{params.a}/purge",
        params={"a": NAME},
    )

    assert service.seen[0][:2] == ("POST", path)


@pytest.mark.parametrize("value", ["", ".", "..", "\ud800"])
async def test_what_is_no_segment_is_not_asked_for(
    service: Service, tmp_path: Path, value: str
) -> None:
    handler = http_handler(
        "x", HttpSection(url=service.url, path="/a/{params.a}", params={"a": NAME})
    )
    with pytest.raises(CommandFailed) as refused:
        _ = [part async for part in _parts(handler, value)]

    assert refused.value.code == "INVALID_PARAMS"
    assert service.seen == []


async def _parts(handler: Any, value: str) -> AsyncIterator[Any]:
    yield await handler.call(params={"a": value})


async def test_query_and_body_carry_params_as_values(service: Service, tmp_path: Path) -> None:
    await ask(
        service,
        tmp_path,
        {"q": "a&b=c d", "n": 3, "tags": ["x", "{params.q}"]},
        method="PUT",
        query={"q": "{params.q}", "fixed": "{}", "deep": "{params.deep}"},
        json={"list": ["{params.n}", "text"], "tags": "{params.tags}", "on": True},
        params={
            "q": NAME,
            "n": {"type": "integer", "minimum": 0, "maximum": 9},
            "tags": {"type": "array", "maxItems": 3, "items": NAME},
            "deep": {"type": "boolean", "default": False},
        },
    )

    method, path, body, headers = service.seen[0]
    assert (method, path) == ("PUT", "/?q=a%26b%3Dc+d&fixed=%7B%7D&deep=false")
    assert json.loads(body) == {"list": [3, "text"], "tags": ["x", "{params.q}"], "on": True}
    assert headers["Content-Type"] == "application/json"


async def test_a_secret_header_comes_from_its_file_as_it_is_now_and_is_not_shown(
    service: Service, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    handler = http_handler(
        "x",
        HttpSection(
            url=service.url, headers={"X-Fixed": "1"}, header_files={"Authorization": file}
        ),
    )
    file.write_text("Bearer one\n")
    await Run(handler, tmp_path / "run")()
    file.write_text("Bearer s3cret-two\n")
    service.status, service.body = 403, b"token s3cret-two is no good"
    with pytest.raises(CommandFailed) as failed:
        await Run(handler, tmp_path / "run")()

    assert [each[3]["Authorization"] for each in service.seen] == [
        "Bearer one",
        "Bearer s3cret-two",
    ]
    assert service.seen[0][3]["X-Fixed"] == "1"
    assert failed.value.details == "token *** is no good"


@pytest.mark.parametrize("content", [None, b"", b"a\nb", b"\xff", b"x" * 70_000])
async def test_a_file_that_holds_no_header_is_an_error_that_does_not_quote_it(
    service: Service, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CommandFailed, match="a file of header_files"):
        await ask(service, tmp_path, header_files={"X": file})

    assert service.seen == []


@pytest.mark.parametrize("status", [300, 302, 400, 404, 500, 503])
async def test_what_is_no_success_fails_with_its_status_and_the_beginning_of_what_it_said(
    service: Service, tmp_path: Path, status: int
) -> None:
    service.status, service.body = status, b"e" * 9000
    service.headers = {"Location": "http://127.0.0.1:1/elsewhere"}
    with pytest.raises(CommandFailed) as failed:
        await ask(service, tmp_path)

    assert failed.value.code == "UPSTREAM_STATUS"
    assert failed.value.message.startswith(f"the service answered {status}")
    assert failed.value.details == "e" * 2048
    assert len(service.seen) == 1


async def test_nothing_is_null(service: Service, tmp_path: Path) -> None:
    service.status, service.body = 204, b""

    assert await ask(service, tmp_path, method="DELETE") is None


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"<html>", {}, "the answer of the service is not JSON"),
        (b"x" * 2000, {}, "the answer is larger than 1000 bytes"),
        ([b"x" * 600, b"x" * 600], {}, "the answer is larger than 1000 bytes"),
        (b"\x1f\x8b", {"Content-Encoding": "gzip"}, "the service answered compressed, unasked"),
        ([b"x"], {"Content-Length": "99"}, "the answer of the service broke off"),
    ],
)
async def test_an_answer_that_cannot_be_taken_is_an_error(
    service: Service, tmp_path: Path, body: Any, headers: dict[str, str], message: str
) -> None:
    service.body, service.headers = body, headers
    with pytest.raises(CommandFailed) as failed:
        await ask(service, tmp_path, max_response_bytes=1000)

    assert (failed.value.code, failed.value.message) == ("UPSTREAM_INVALID", message)


async def test_bytes_are_streamed_as_they_come(service: Service, tmp_path: Path) -> None:
    service.body = [b"a" * 100_000] * 5
    declared = HttpSection(url=service.url, output="bytes")
    stream = await http_handler("x", declared).call(params={})
    sizes = [len(part) async for part in stream]

    assert sum(sizes) == 500_000
    assert len(sizes) > 5


async def test_text_is_text(service: Service, tmp_path: Path) -> None:
    service.body = b"caf\xc3\xa9 \xff"

    assert await ask(service, tmp_path, output="text") == "café \ufffd"


async def test_nobody_there_is_an_error_of_its_own(
    service: Service, tmp_path: Path, unused_tcp_port: int
) -> None:
    with pytest.raises(CommandFailed) as failed:
        await ask(service, tmp_path, url=f"http://127.0.0.1:{unused_tcp_port}")

    assert failed.value.code == "UPSTREAM_UNREACHABLE"


async def test_no_proxy_is_asked(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert await ask(service, tmp_path) == b'{"ok": true}'


async def test_a_name_that_leads_to_a_metadata_address_is_not_asked(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: Any) -> list[dict[str, Any]]:
        return [{"host": "169.254.169.254", "hostname": "x", "port": 80, "family": 2}]

    monkeypatch.setattr("arc_runtime.network.allowed_hosts.ThreadedResolver.resolve", resolve)
    with pytest.raises(CommandFailed) as failed:
        await ask(service, tmp_path, url="http://inner.example")

    assert failed.value.code == "UPSTREAM_UNREACHABLE"
    assert "link-local" in failed.value.message


async def test_a_run_that_is_cancelled_hangs_up(service: Service, tmp_path: Path) -> None:
    task = asyncio.create_task(ask(service, tmp_path, path="/slow"))
    await until(lambda: service.seen)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with asyncio.timeout(10):
        await service.was_left.wait()
