"""`arc-agent run-once`: what is ready now, and then the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from arc_agent.guard.pause import Order, Pause
from tests.support.scripted_server import ScriptedServer, inline
from tests.support.waiting import until

HANDLERS = """
import asyncio, pathlib
from arc_agent import handler

@handler("once")
async def once() -> str:
    return "done"

@handler("long")
async def long() -> None:
    pathlib.Path("running").touch()
    await asyncio.sleep(60)
"""


async def begin(
    tmp_path: Path, url: str, *words: str, **environ: str
) -> asyncio.subprocess.Process:
    """The process."""
    (tmp_path / "my_handlers.py").write_text(HANDLERS)
    return await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "arc-agent",
        *("run-once", "--server", url, "--deployment", "dep-1", "--handlers", "my_handlers"),
        *words,
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "ARC_AGENT_DATA_DIR": str(tmp_path / "agent"),
            "ARC_AGENT_DRAIN_SECONDS": "0.1",
            "ARC_AGENT_DRAIN_FLUSH_SECONDS": "0.3",
            **environ,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Its exit code, what it printed, and the last line of its log."""
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode().rstrip().rpartition("\n")[2]


async def test_what_is_ready_is_run_and_handed_in(server: ScriptedServer, tmp_path: Path) -> None:
    for _ in range(3):
        server.send("once")

    code, out, _ = await ended(await begin(tmp_path, server.url))

    assert (code, out) == (0, "3 commands run; all results are handed in\n")
    assert [inline(response) for response in server.responses()] == [b'"done"'] * 3
    assert len(server.seen("leases")) == 1
    assert "waitSeconds" not in server.seen("leases")[0].json()


async def test_with_nothing_ready_it_says_so(server: ScriptedServer, tmp_path: Path) -> None:
    code, out, _ = await ended(await begin(tmp_path, server.url))

    assert (code, out) == (0, "nothing is ready\n")


async def test_it_waits_for_a_command_when_told_to(server: ScriptedServer, tmp_path: Path) -> None:
    process = await begin(tmp_path, server.url, "--wait", "30s")
    await server.until(lambda: bool(server.seen("leases")))
    server.send("once")

    code, out, _ = await ended(process)

    assert (code, out) == (0, "1 command run; all results are handed in\n")
    assert server.seen("leases")[0].json()["waitSeconds"] == 25.0


async def test_it_waits_no_longer_than_told_to(server: ScriptedServer, tmp_path: Path) -> None:
    code, out, _ = await ended(await begin(tmp_path, server.url, "--wait", "200ms"))

    assert (code, out) == (0, "nothing is ready\n")
    assert server.seen("leases")[0].json()["waitSeconds"] <= 0.2


async def test_no_server_is_said_at_once(tmp_path: Path) -> None:
    code, out, last = await ended(await begin(tmp_path, "http://127.0.0.1:9"))

    assert (code, out) == (3, "")
    assert last == "error: cannot connect to 127.0.0.1:9: Connection refused"


async def test_a_pause_holds_for_it_too(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    Pause(tmp_path / "agent").apply(Order(state="paused", note="moving"))
    server.send("once")

    code, _, last = await ended(await begin(tmp_path, server.url))

    assert (code, last) == (1, "error: nothing was asked for: it is paused (moving)")
    assert server.seen("leases") == []


async def test_a_result_that_cannot_be_handed_in_is_kept_and_said(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.send("long")
    process = await begin(tmp_path, server.url, ARC_AGENT_HANDLERS_TIMEOUT_SECONDS="1")
    await until((tmp_path / "running").exists)
    await server.stop()

    code, _, last = await ended(process)

    assert code == 1
    assert last == "error: 1 command run; results that wait in the spool for the server: 1"


async def test_sigterm_gives_back_what_runs(server: ScriptedServer, tmp_path: Path) -> None:
    server.send("long")
    process = await begin(tmp_path, server.url)
    await until((tmp_path / "running").exists)
    process.send_signal(signal.SIGTERM)

    await ended(process)

    assert [request.json()["reason"] for request in server.seen("release")] == ["drain"]


async def test_a_wait_that_is_none_is_refused(tmp_path: Path) -> None:
    process = await begin(tmp_path, "http://127.0.0.1:9", "--wait", "soon")
    async with asyncio.timeout(30):
        _, err = await process.communicate()

    assert process.returncode == 2
    assert err.decode().startswith("error: --wait: expected a duration such as")
