"""docs/sender.md and README.md: every example is run as it stands, but for the server's name."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fake_server import FakeServer, agent, echo
from tests.support.shell import environment

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "sender.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
PYTHON = [
    example
    for page in ("docs/sender.md", "README.md")
    for example in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    if "arc_client" in example
]
TABLE = b'{"rows": 3}'


@pytest.fixture
async def documented(tmp_path: Path) -> AsyncIterator[FakeServer]:
    """A server with what the page speaks of, and its files in a directory."""
    (tmp_path / "token").write_text("right\n")
    (tmp_path / "table.json").write_bytes(TABLE)
    (tmp_path / "table.json.gz").write_bytes(gzip.compress(TABLE))
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")

    async def report(params: bytes) -> bytes:
        return TABLE

    names = ["tables.import", "tables.export", "images.resize", "db.vacuum"]
    server = FakeServer(token="right", agents=[agent("a1", "acme-eu-1")])
    server.handlers = dict.fromkeys(names, echo) | {"reports.generate": report}
    await server.start()
    yield server
    await server.stop()


def here(example: str, server: FakeServer, place: Path) -> str:
    """An example, with this test's server and files."""
    return (
        example.replace("https://arc.example.com", server.url)
        .replace("/run/secrets/arc", str(place / "token"))
        .replace("users.csv", str(place / "users.csv"))
        .replace('Path("table.json")', f"Path({str(place / 'table.json')!r})")
    )


async def test_what_is_typed_in_a_shell_works(documented: FakeServer, tmp_path: Path) -> None:
    shim = f'arc() {{ "{sys.executable}" -m arc_client "$@"; }}\nset -eu\n'
    script = shim + "\n".join(here(example, documented, tmp_path) for example in SHELL)

    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        script,
        cwd=tmp_path,
        env=environment(None, PYTHONPATH=str(ROOT)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert (process.returncode, err.decode()) == (0, "")
    assert b'{"rows": 3}\n' in out
    assert (tmp_path / "small.png").read_bytes() == b"\x89PNG"
    assert b"failed with" not in out
    assert b" had ended before: SUCCEEDED\n" in out
    assert os.listdir(tmp_path).count("users.csv") == 1


@pytest.mark.parametrize("example", PYTHON, ids=range(len(PYTHON)))
async def test_what_is_written_in_python_is_a_whole_program(
    documented: FakeServer, tmp_path: Path, example: str
) -> None:
    program = tmp_path / "example.py"
    program.write_text(here(example, documented, tmp_path))

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", str(program)),
        cwd=tmp_path,
        env=environment(None, PYTHONPATH=str(ROOT)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert (process.returncode, err.decode()) == (0, "")
    assert documented.commands
    assert b"it goes on" not in out


def test_the_page_names_every_option_of_invoke() -> None:
    from typer.main import get_command

    from arc_client.cli.main import app

    invoke = get_command(app).commands["invoke"]  # type: ignore[attr-defined]
    options = {flag for parameter in invoke.params for flag in parameter.opts if flag[:2] == "--"}

    assert {flag for flag in options if flag not in PAGE} == set()
