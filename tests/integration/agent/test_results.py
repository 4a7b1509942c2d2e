"""Results that are no regular files, hang, or hold what JSON cannot carry."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path, PosixPath

from arc_agent import CommandFailed, Context, handler
from tests.support.agent_process import agent
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import until

HANDLERS = """
import pathlib, time
from arc_agent import CommandFailed, Context, handler

class Hanging(pathlib.PosixPath):
    def __fspath__(self):
        open("hangs", "w").close()
        time.sleep(3600)

@handler("hang")
async def hang() -> pathlib.Path:
    return Hanging("/a/dead/mount")
"""


async def test_a_result_file_that_is_no_regular_file_is_refused_at_once(
    server: ScriptedServer, start: Start, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        paths = [str(tmp_path / "fifo"), str(tmp_path / "socket"), "/dev/zero", str(tmp_path)]

        @handler("file")
        def file(params: str) -> Path:
            return Path(params)

        await start(server, file)
        for number, path in enumerate(paths, 1):
            server.send("file", path)
            response = await server.response(number)

            assert response["code"] == "INVALID_RESULT", path
            assert response["message"] == "result: the path leads to no regular file"


async def test_a_result_that_hangs_ends_with_the_handler_s_time(
    server: ScriptedServer, start: Start, tmp_path: Path
) -> None:
    may_end = threading.Event()

    class Hanging(PosixPath):
        def __fspath__(self) -> str:
            may_end.wait(60)
            return super().__fspath__()

    @handler("hang", timeout_seconds=0.05)
    async def hang() -> Path:
        return Hanging(tmp_path / "file")

    (tmp_path / "file").touch()
    try:
        running = await start(server, hang)
        server.send("hang")
        assert (await server.response())["code"] == "HANDLER_TIMEOUT"
    finally:
        may_end.set()
    await running.stop()


async def test_a_result_that_hangs_does_not_hold_up_the_exit(
    server: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "hanging_handlers.py").write_text(HANDLERS)
    server.send("hang")
    async with agent(server, tmp_path, "--handlers", "hanging_handlers") as process:
        await until(lambda: (tmp_path / "hangs").exists())
        process.process.terminate()
        assert await process.ended() == 0


async def test_a_lifespan_that_hangs_in_its_thread_does_not_hold_up_the_exit(
    tmp_path: Path, server: ScriptedServer
) -> None:
    (tmp_path / "hanging_handlers.py").write_text(
        "import time\n"
        "from collections.abc import Iterator\n"
        "from arc_agent import CommandFailed, Context, handler, lifespan\n"
        "@handler('x')\n"
        "def x() -> None: pass\n"
        "@lifespan\n"
        "def pool() -> Iterator[None]:\n"
        "    yield\n"
        "    time.sleep(3600)\n"
    )
    async with agent(
        server,
        tmp_path,
        *("--handlers", "hanging_handlers"),
        ARC_AGENT_HANDLERS_LIFESPAN_SECONDS="0.1",
    ) as process:
        await process.until_logged("ready")
        process.process.terminate()
        assert await process.ended() == 0
        assert await process.until_logged("lifespan.not_closed")


async def test_text_that_is_no_unicode_ends_its_command_alone(
    server: ScriptedServer, start: Start
) -> None:
    name = b"\xff".decode("utf-8", "surrogateescape")

    @handler("code")
    def code(ctx: Context) -> None:
        ctx.log.info(f"the file {name}", name=name)
        ctx.progress(1, text=name)
        raise CommandFailed(f"BAD_{name}", name, name)

    @handler("raise")
    def raises() -> None:
        raise FileNotFoundError(name)

    @handler("result")
    def result() -> dict[str, list[str]]:
        return {"files": ["a", name]}

    await start(server, code, raises, result)
    for number, command in enumerate(("code", "raise", "result", "code"), 1):
        server.send(command)
        response = await server.response(number)
        if command == "result":
            assert response["code"] == "INVALID_RESULT"
            assert response["message"].startswith("result.files[1]: ")
        else:
            expected = "BAD_?" if command == "code" else "HANDLER_ERROR"
            assert response["code"] == expected
