"""Large bodies that only host and sender can read, with a real server, agent and `arc`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import yaml

from tests.support.processes import BIN, Process

SEAL = "--sign-with ops.key --encrypt-to edge.pub"


async def said(line: str, place: Path, url: str) -> str:
    """Type a line into a shell; return what it shows."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-ec", line),
        cwd=place,
        env={"PATH": f"{BIN}:{os.environ['PATH']}", "ARC_SERVER_URL": url, "HOME": str(place)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return out.decode()


async def test_a_large_body_is_sealed_on_both_ways_and_opened_with_the_keys(tmp_path: Path) -> None:
    url_of = ("serve", "--no-auth", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "s"))
    server = await Process.start("server", "arc-server", *url_of)
    url = await server.url()
    new_keys = (
        "arc keys new ops --out ops.key >ops.pub 2>&-; arc-agent keys new edge --out edge.key"
    )
    await said(f"{new_keys} >edge.pub 2>&-", tmp_path, url)
    signing = {
        "keys": str(tmp_path / "ops.pub"),
        "required": True,
        "host_keys": [str(tmp_path / "edge.key")],
    }
    settings = {"server": {"url": url}, "deployment": "acme-eu-1", "signing": signing}
    (tmp_path / "agent.yaml").write_text(yaml.safe_dump(settings))
    run = ("run", "--config", str(tmp_path / "agent.yaml"), "--data-dir", str(tmp_path / "a"))
    agent = await Process.start("agent", "arc-agent", *run)
    (tmp_path / "large").write_bytes(os.urandom(3_000_000))
    send = f"id=$(arc invoke acme-eu-1 arc.echo --params @large --raw --no-wait {SEAL})"
    try:
        await agent.logged("ready")

        opened = await said(f'{send}; arc wait "$id" --out back {SEAL}', tmp_path, url)
        unopened = await said(f'{send}; arc wait "$id" --out sealed', tmp_path, url)
    finally:
        await agent.put_away()
        await server.put_away()

    assert (opened, unopened) == ("", "")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()
    assert (tmp_path / "sealed").read_bytes().startswith(b"arc-sealed-r1\n")
