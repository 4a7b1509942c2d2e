"""docs/signing.md as it stands, with a real server, a real agent and `arc` from a shell."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .processes import BIN, Process

PAGE = (Path(__file__).parents[2] / "docs" / "signing.md").read_text()
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL))
CONSOLE = "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL))
EXAMPLES = re.findall(r"^\$ (.*?)\n(.*?)(?=^\$ |\Z)", CONSOLE, re.DOTALL | re.MULTILINE)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[str]:
    """A server that asks for no token; its URL."""
    process = await Process.start(
        "server",
        "arc-server",
        *("serve", "--no-auth", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "server")),
    )
    yield await process.url()
    await process.put_away()


async def said(line: str, place: Path, url: str) -> str:
    """What a shell shows for a line of the page."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", line),
        cwd=place,
        env={"PATH": f"{BIN}:{os.environ['PATH']}", "ARC_SERVER_URL": url, "HOME": str(place)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    code = process.returncode
    return out.decode() + (f"[exit code {code}]\n" if code else "")


def _same_id(text: str) -> str:
    """A text with no command's own id."""
    return re.sub(r"cmd_[a-z0-9]+", "cmd_…", text)


async def test_the_page_works_as_it_is_typed(server: str, tmp_path: Path) -> None:
    place = tmp_path / "desk"
    (place / "keys").mkdir(parents=True)
    (place / "token").write_text("any")
    config = FILES["agent.yaml"].replace("https://arc.example.com", server)
    (place / "agent.yaml").write_text(config.replace("keys: keys", f"keys: {place / 'keys'}"))
    agent: Process | None = None
    shown: list[tuple[str, str]] = []
    try:
        for line, _ in EXAMPLES:
            if agent is None and "invoke" in line:
                for file in place.glob("*.pub"):
                    (place / "keys" / file.name).write_bytes(file.read_bytes())
                agent = await Process.start(
                    "agent",
                    "arc-agent",
                    *("run", "--config", str(place / "agent.yaml")),
                    env={"ARC_AGENT_DATA_DIR": str(tmp_path / "agent")},
                )
                await agent.logged("ready")
            shown.append((line, await said(line, place, server)))

        script = PYTHON[0].replace("https://arc.example.com", server)
        (place / "send.py").write_text(script.replace("/run/secrets/arc", str(place / "token")))
        by_library = await said(f"{sys.executable} send.py", place, server)
    finally:
        if agent is not None:
            await agent.put_away()

    assert [(line, _same_id(text)) for line, text in shown] == [
        (line, _same_id(text)) for line, text in EXAMPLES
    ]
    assert by_library == "{'say': 'signed'}\n"
