"""docs/sender.md: every example is run as it stands, but for the server's name."""

from __future__ import annotations

import ast
import asyncio
import gzip
import inspect
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fake_server import FakeServer, agent, echo
from tests.support.shell import environment

PAGE = (Path(__file__).parents[3] / "docs" / "sender.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
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
    root = str(Path(__file__).parents[3])

    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        script,
        cwd=tmp_path,
        env=environment(None, PYTHONPATH=root),
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


@pytest.mark.parametrize("example", PYTHON, ids=lambda text: text.split("\n")[0])
async def test_what_is_written_in_python_works(
    documented: FakeServer,
    tmp_path: Path,
    example: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = here(example, documented, tmp_path)
    code = compile(source, "docs/sender.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, object] = {"__name__": "example"}

    if code.co_flags & inspect.CO_COROUTINE:
        await eval(code, names)
    else:
        await asyncio.to_thread(exec, code, names)

    assert documented.commands
    assert "it goes on" not in capfd.readouterr().out


def test_the_page_names_every_option_of_invoke() -> None:
    from typer.main import get_command

    from arc_client.cli.main import app

    invoke = get_command(app).commands["invoke"]  # type: ignore[attr-defined]
    options = {flag for parameter in invoke.params for flag in parameter.opts if flag[:2] == "--"}

    assert {flag for flag in options if flag not in PAGE} == set()
