"""`arc` against a fake of the public stand-alone server: uploads are files of its own host."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.base_protocol_server import BaseProtocolServer
from tests.support.shell import arc_process


@pytest.fixture
async def public() -> AsyncIterator[BaseProtocolServer]:
    async with BaseProtocolServer(3) as server:
        server.state.is_local = True
        yield server


async def test_params_of_any_size_that_it_takes_go_inline(
    public: BaseProtocolServer, tmp_path: Path
) -> None:
    params = tmp_path / "params"
    params.write_bytes(bytes(1_500_000))
    sending = asyncio.create_task(
        arc_process("invoke", "dep", "c", "--params", f"@{params}", url=public.url)
    )
    await public.until(lambda: public.state.commands)

    target = {"resourceId": "default", "resourceType": "daemon"}
    [lease] = public.state.lease({"deploymentId": "dep", "target": target})["leases"]
    response = {"status": "success", "response": {"mode": "inline", "inlineBase64": "Nw=="}}
    public.state.respond(lease["commandId"], response)
    ended = await sending

    assert (ended.code, ended.out, ended.err) == (0, b"7\n", "")
    assert [command.state for command in public.state.commands.values()] == ["SUCCEEDED"]
    [create] = [json.loads(seen.body) for seen in public.seen("create")]
    assert b64decode(create["params"]["inlineBase64"]) == bytes(1_500_000)


async def test_larger_params_are_refused_with_the_reason(
    public: BaseProtocolServer, tmp_path: Path
) -> None:
    params = tmp_path / "params"
    params.write_bytes(bytes(1_500_001))

    ended = await arc_process("invoke", "dep", "c", "--params", f"@{params}", url=public.url)

    assert ended.code == 3
    assert "on its own disk only, so params may have up to 1,500,000 bytes" in ended.err
    assert len(public.seen("create")) == 1
