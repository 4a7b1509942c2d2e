"""Lifespans open once before the agent is ready, reach the handlers, and close when it stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_agent.config.handler_sections import HandlersSection
from arc_agent.handlers.loading import load_handlers
from arc_agent.handlers.registry import HandlerError
from tests.support.agent_process import agent
from tests.support.scripted_server import ScriptedServer, inline

MODULE = """
import os, pathlib, time
from collections.abc import AsyncIterator, Iterator
from arc_agent import Context, handler, lifespan

NOTES = pathlib.Path(os.environ["RUNS"])

def note(text):
    with NOTES.open("a") as file:
        file.write(text + "\\n")

class Settings(str): pass
class Pool:
    def __init__(self, name): self.name = name

@lifespan
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    note("pool opens")
    yield Pool(settings + " pool")
    note("pool closes")

@lifespan
def settings() -> Iterator[Settings]:
    note("settings open")
    yield Settings("the")
    note("settings close")
    BROKEN

@handler("use")
async def use(query: dict[str, int], pool: Pool, ctx: Context) -> str:
    return f"{pool.name} {query['n']}"
"""


def place(tmp_path: Path, text: str = MODULE) -> None:
    (tmp_path / "pooled.py").write_text(text)


async def test_a_pool_is_opened_once_and_passed_to_who_asks_for_one(
    server: ScriptedServer, tmp_path: Path
) -> None:
    place(tmp_path, MODULE.replace("BROKEN", ""))
    server.send("use", {"n": 1})
    server.send("use", {"n": 2})
    async with agent(server, tmp_path, "--handlers", "pooled") as process:
        results = {inline(await server.response(n)) for n in (1, 2)}
        process.process.terminate()
        assert await process.ended() == 0

    assert results == {b'"the pool 1"', b'"the pool 2"'}
    assert (tmp_path / "runs").read_text().splitlines() == [
        "settings open",
        "pool opens",
        "pool closes",
        "settings close",
    ]


async def test_one_that_does_not_close_is_said_and_the_rest_is_closed(
    server: ScriptedServer, tmp_path: Path
) -> None:
    place(tmp_path, MODULE.replace("BROKEN", "raise OSError('stuck')"))
    async with agent(server, tmp_path, "--handlers", "pooled") as process:
        await process.until_logged("ready")
        process.process.terminate()
        assert await process.ended() == 0
        said = await process.until_logged("lifespan.not_closed")

    assert said["lifespan"] == "the lifespan settings (pooled)"


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("raise OSError('no database')", "OSError: no database"),
        ("return", "it ended without a yield"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("time.sleep(0.2); yield; return", None),
        ("import asyncio; await asyncio.sleep(60)", "it did not open within 0.5 s"),
    ],
)
async def test_one_that_does_not_open_stops_the_agent_before_it_is_ready(
    server: ScriptedServer, tmp_path: Path, broken: str, says: str | None
) -> None:
    place(tmp_path, MODULE.replace("BROKEN", "").replace('note("pool opens")', broken))
    settings = {"ARC_AGENT_HANDLERS_LIFESPAN_SECONDS": "0.5"}
    async with agent(server, tmp_path, "--handlers", "pooled", **settings) as process:
        if says is None:
            await process.until_logged("ready")
            return
        assert await process.ended() == 2
        last = process.log.read_text().splitlines()[-1]

    assert last == f"error: the lifespan pool (pooled): {says}"
    assert server.requests == []
    assert (tmp_path / "runs").read_text().splitlines() == ["settings open", "settings close"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("@lifespan\ndef a(): pass", "the lifespan a: it must be a generator"),
        (
            "@lifespan\ndef a(x: int): yield",
            r"the lifespan a \(\S+\): nothing before it provides int",
        ),
        ("@lifespan\ndef a(x): yield", "the parameter x needs a type"),
        ("@lifespan\ndef a() -> 'No': yield", "its annotations"),
        (
            "@lifespan\ndef a(x: str) -> Iterator[int]: yield 1\n"
            "@lifespan\ndef b(x: int) -> Iterator[str]: yield ''",
            "nothing before it provides str",
        ),
        (
            "@lifespan\ndef a() -> Iterator[int]: yield 1\n"
            "@lifespan\ndef b() -> Iterator[int]: yield 2",
            "provide int both",
        ),
        ("@handler('y')\ndef f(params, pool: dict): pass", "pool, which no lifespan provides"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_the_start(
    tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "misfit.py"
    head = "from collections.abc import Iterator\nfrom arc_agent import handler, lifespan\n"
    file.write_text(f"{head}@handler('x')\ndef x(): pass\n{text}\n")

    with pytest.raises(HandlerError) as refused:
        load_handlers(HandlersSection(modules=[str(file)], entry_points=False))

    import re

    said = getattr(refused.value, "report", str(refused.value))
    assert re.search(says, said)
