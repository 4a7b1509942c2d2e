"""docs/declared-handlers.md as it stands: its configuration is loaded, its commands are run."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from arc_agent.cli.main import main
from tests.support.running_agent import running
from tests.support.scripted_server import ScriptedServer, inline

PAGE = (Path(__file__).parents[3] / "docs" / "declared-handlers.md").read_text()
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL))
EXAMPLES = re.findall(
    r"\$ arc invoke acme (\S+) --params '([^\n]*)'\n(.*?)(?=\n\$|\n```)", PAGE, re.DOTALL
)


@pytest.fixture
async def service() -> AsyncIterator[str]:
    """The cache's administration."""

    async def purge(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer of-the-cache"
        assert await request.json() == {"deep": False, "reason": "asked by the vendor"}
        name = request.match_info["name"]
        if name == "unknown":
            return web.json_response({"error": "no such cache"}, status=404)
        return web.Response(body=b'{"purged":"%s"}' % name.encode())

    app = web.Application()
    app.router.add_post("/admin/caches/{name}/purge", purge)
    server = TestServer(app)
    await server.start_server()
    yield f"127.0.0.1:{server.port}"
    await server.close()


@pytest.fixture
def settings(tmp_path: Path, service: str) -> dict[str, Any]:
    """The page's configuration, its places replaced by those of the test."""
    with sqlite3.connect(tmp_path / "shop.db") as db:
        db.executescript(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer, placed_at, total TEXT);"
            "INSERT INTO orders VALUES (1, 'Ann', '2026-10-01', '9.90'),"
            " (2, 'Ann', '2026-10-02', '12.50'), (3, 'Bob', '2026-10-03', '1.00');"
        )
    db.close()
    (tmp_path / "cache-token").write_text("Bearer of-the-cache\n")
    text = FILES["agent.yaml"]
    for there, here in (
        ("127.0.0.1:8080", service),
        ("/var/lib/shop", str(tmp_path)),
        ("/etc/arc", str(tmp_path)),
    ):
        assert there in text
        text = text.replace(there, here)
    return yaml.safe_load(text)["handlers"]


@pytest.mark.parametrize(
    ("command", "params", "shown"), EXAMPLES, ids=[f"{c} {p}" for c, p, _ in EXAMPLES]
)
async def test_a_command_of_the_page_answers_what_the_page_says(
    server: ScriptedServer,
    settings: dict[str, Any],
    tmp_path: Path,
    command: str,
    params: str,
    shown: str,
) -> None:
    server.send(command, raw=params.encode())
    async with running(server.url, tmp_path, (), {"handlers": settings}):
        response = await server.response()

    if response["status"] == "error":
        assert f"{response['code']}: {response['message']}" == shown
    else:
        assert inline(response).decode() == shown


async def test_senders_are_told_of_the_schemas(
    server: ScriptedServer, settings: dict[str, Any], tmp_path: Path
) -> None:
    server.send("numbers.list", {"last": 1})
    async with running(server.url, tmp_path, (), {"handlers": settings}):
        await server.response()

    handlers = {each["name"]: each for each in server.seen("agents")[0].json()["handlers"]}
    schema = handlers["orders.of-customer"]["paramsSchema"]
    assert schema["required"] == ["customer"]
    assert schema["properties"]["most"]["maximum"] == 100
    assert handlers["cache.purge"]["idempotent"] is False


@pytest.mark.parametrize("name", FILES)
def test_the_configurations_of_the_page_are_good(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(FILES[name])

    assert main(["check-config", str(tmp_path / name)]) == 0, capfd.readouterr().err


@pytest.mark.parametrize(
    ("there", "here", "key"),
    [
        ("maximum: 1000", "multipleOf: 2", "handlers.exec.numbers.list.params.last.multipleOf"),
        (
            "{type: string, maxLength: 60}\n        deep",
            "{}\n        deep",
            "handlers.http.cache.pur",
        ),
        (":customer", ":nobody", "handlers.sql.orders.of-customer.statement"),
        ("cpu_seconds: 10", "cpu_seconds: 0", "handlers.exec"),
        ("method: POST", "method: POKE", "handlers.http"),
        ("statement: >-", "statements: >-", "handlers.sql"),
    ],
)
def test_a_slip_of_the_pen_is_refused_with_the_path_of_the_key(
    tmp_path: Path, there: str, here: str, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert there in FILES["agent.yaml"]
    (tmp_path / "bad.yaml").write_text(FILES["agent.yaml"].replace(there, here))

    assert main(["check-config", str(tmp_path / "bad.yaml")]) == 2
    assert capfd.readouterr().err.startswith(f"error: {key}")
