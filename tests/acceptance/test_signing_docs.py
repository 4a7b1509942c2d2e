"""docs/signing.md as it stands, with a real server, a real agent and `arc` from a shell."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from arc_agent.cli.main import main
from tests.support.processes import BIN, Process

PAGE = (Path(__file__).parents[2] / "docs" / "signing.md").read_text()
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL))
CONSOLE = "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL))
EXAMPLES = re.findall(r"^\$ (.*?)\n(.*?)(?=^\$ |\Z)", CONSOLE, re.DOTALL | re.MULTILINE)
HOST_KEYS = next(text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
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


def _same_ids(example: tuple[str, str]) -> tuple[str, str]:
    """An example with no command's own id."""
    line, text = example
    return line, re.sub(r"cmd_[a-z0-9]+", "cmd_…", text)


async def test_the_page_works_as_it_is_typed(server: str, tmp_path: Path) -> None:
    place = tmp_path / "desk"
    (place / "keys").mkdir(parents=True)
    (place / "token").write_text("any")
    shown = [(line, await said(line, place, server)) for line, _ in EXAMPLES if "keys" in line]
    os.rename(place / "ops-2026.pub", place / "keys" / "ops-2026.pub")
    config = yaml.safe_load(FILES["agent.yaml"])
    config["server"]["url"] = server
    config["signing"] = yaml.safe_load(HOST_KEYS)["signing"]
    for key in ("keys", "host_keys"):
        given = config["signing"][key]
        whole = [str(place / each) for each in given] if key == "host_keys" else str(place / given)
        config["signing"][key] = whole
    (place / "agent.yaml").write_text(yaml.safe_dump(config))
    agent = await Process.start(
        "agent",
        "arc-agent",
        *("run", "--config", str(place / "agent.yaml")),
        env={"ARC_AGENT_DATA_DIR": str(tmp_path / "agent")},
    )
    try:
        await agent.logged("ready")
        shown += [
            (line, await said(line, place, server)) for line, _ in EXAMPLES if "invoke" in line
        ]
        script = PYTHON[0].replace("https://arc.example.com", server)
        (place / "send.py").write_text(script.replace("/run/secrets/arc", str(place / "token")))
        by_library = await said(f"{sys.executable} send.py", place, server)
        (place / "large").write_bytes(os.urandom(3_000_000))
        both = "--sign-with ops-2026.key --encrypt-to edge-7.pub"
        send = f"id=$(arc invoke acme arc.echo --params @large --raw --no-wait {both})"
        large = await said(f'{send} && arc wait "$id" --out back {both}', place, server)
        unopened = await said(f'{send} && arc wait "$id" --out sealed', place, server)
    finally:
        await agent.put_away()

    assert sorted(map(_same_ids, shown)) == sorted(map(_same_ids, EXAMPLES))
    assert by_library == "{'say': 'signed'}\n"
    assert (large, unopened) == ("", "")
    assert (place / "back").read_bytes() == (place / "large").read_bytes()
    assert (place / "sealed").read_bytes().startswith(b"arc-sealed-r1\n")


def test_the_configuration_of_the_page_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "agent.yaml").write_text(FILES["agent.yaml"])
    monkeypatch.chdir(tmp_path)

    assert main(["check-config", "agent.yaml"]) == 0

    (tmp_path / "agent.yaml").write_text(FILES["agent.yaml"].replace("  keys: keys", "  # keys:"))

    assert main(["check-config", "agent.yaml"]) == 2
    assert "signing.required: needs signing.keys" in capsys.readouterr().err
