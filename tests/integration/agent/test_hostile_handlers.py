"""Handlers that do their worst. The agent, and what else it runs, go on."""

from __future__ import annotations

import asyncio
import locale
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arc_agent import handler
from tests.support.agent_process import agent
from tests.support.processes import until_gone
from tests.support.scripted_server import ScriptedServer, inline

Start = Callable[..., Any]


@handler("good")
def good(params: object) -> str:
    return "done"


class Mute(Exception):
    """An error that cannot even say what it is."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Explosive(msgspec.Struct):
    """Params whose check exits."""

    number: int = 0

    def __post_init__(self) -> None:
        raise SystemExit(self.number)


ERRORS: list[Callable[[], BaseException]] = [
    lambda: SystemExit(0),
    lambda: SystemExit("bye"),
    lambda: KeyboardInterrupt(),
    lambda: GeneratorExit(),
    lambda: BaseException("at all"),
    lambda: asyncio.CancelledError(),
    lambda: StopIteration(1),
    lambda: StopAsyncIteration(),
    lambda: MemoryError(),
    lambda: TimeoutError(),
    lambda: BaseExceptionGroup("many", [KeyboardInterrupt(), ValueError()]),
    lambda: Mute(),
    lambda: ValueError("x" * 10_000),
    lambda: ValueError("\ud800\0\x1b[2J"),
    lambda: RecursionError(),
]


async def test_whatever_a_handler_raises_is_its_own_failure(
    server: ScriptedServer, start: Start, logged: Any
) -> None:
    @handler("loop")
    async def in_loop(number: int) -> None:
        raise ERRORS[number]()

    @handler("thread")
    def in_thread(number: int) -> None:
        raise ERRORS[number]()

    running = await start(server, good, in_loop, in_thread)
    for name in ("loop", "thread"):
        for number in range(len(ERRORS)):
            code = await answered(server, running, name, number)
            assert code == "HANDLER_ERROR", (name, number)
            await still_works(server, running)


async def test_an_error_that_exits_when_it_is_logged_is_a_failure_too(
    server: ScriptedServer, start: Start
) -> None:
    @handler("mute")
    def mute() -> None:
        raise Mute

    running = await start(server, good, mute)

    assert await answered(server, running, "mute") == "HANDLER_ERROR"
    await still_works(server, running)


async def test_a_handler_that_never_comes_back_from_its_own_calls_fails_alone(
    server: ScriptedServer, start: Start, logged: Any
) -> None:
    def deep(n: int) -> int:
        return deep(n + 1) + 1

    @handler("deep.loop")
    async def deep_loop() -> int:
        return deep(0)

    @handler("deep.thread")
    def deep_thread() -> int:
        return deep(0)

    @handler("deep.result")
    def deep_result() -> Any:
        tree: list[Any] = []
        for _ in range(100_000):
            tree = [tree]
        return tree

    @handler("round.result")
    def round_result() -> Any:
        tree: list[Any] = []
        tree.append(tree)
        return tree

    running = await start(server, good, deep_loop, deep_thread, deep_result, round_result)
    for name in ("deep.loop", "deep.thread", "deep.result", "round.result"):
        assert await answered(server, running, name) in ("HANDLER_ERROR", "INVALID_RESULT"), name
        await still_works(server, running)


async def test_params_and_results_whose_code_exits_fail_alone(
    server: ScriptedServer, start: Start
) -> None:
    @handler("params")
    def takes(params: Explosive) -> int:
        return params.number

    @handler("yields")
    def yields() -> Any:
        yield b"some"
        raise SystemExit(1)

    running = await start(server, good, takes, yields)
    assert await answered(server, running, "params", {"number": 1}) in (
        "HANDLER_ERROR",
        "INVALID_PARAMS",
    )
    assert await answered(server, running, "yields") == "HANDLER_ERROR"
    await still_works(server, running)


async def test_what_a_handler_changes_of_the_process_is_put_back(
    server: ScriptedServer, start: Start, tmp_path: Path, logged: Any
) -> None:
    @handler("change")
    async def change() -> None:
        os.chdir("/")
        os.umask(0o777)
        locale.setlocale(locale.LC_NUMERIC, "C.UTF-8")

    @handler("thread")
    def in_thread() -> None:
        os.chdir(tmp_path)
        os.umask(0)
        raise SystemExit(1)

    before = os.getcwd(), locale.setlocale(locale.LC_ALL)
    mask = os.umask(0o022)
    os.umask(mask)
    running = await start(server, good, change, in_thread)
    for name in ("change", "thread"):
        await answered(server, running, name)
        await still_works(server, running)

    assert (os.getcwd(), locale.setlocale(locale.LC_ALL)) == before
    assert os.umask(mask) == mask
    told = {e["command"]: e["what"] for e in logged if e["event"] == "handler.changed_process"}
    assert told == {"change": ["umask", "directory", "locale"], "thread": ["umask", "directory"]}


async def test_a_program_that_prints_without_measure_is_cut_with_a_mark_and_no_memory_is_taken(
    server: ScriptedServer, start: Start
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    section = {"argv": ["head", "-c", "200000000", "/dev/zero"], "output": "bytes"}
    section["max_output_bytes"] = 100  # type: ignore[assignment]
    running = await start(server, good, handlers={"exec": {"print": section}})
    server.send("print")
    await still_works(server, running)
    await server.until(lambda: bool(server.responses("cmd_1")), seconds=30)

    mark = b"\n[arc-agent: 199999900 bytes cut]\n"
    assert inline(server.responses("cmd_1")[0]) == b"\0" * 100 + mark
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("ends", ["returns", "hangs"])
async def test_what_a_program_leaves_behind_is_ended_also_in_sessions_of_its_own(
    server: ScriptedServer, start: Start, tmp_path: Path, ends: str, logged: Any
) -> None:
    code = (
        "import os, signal, sys, time\n"
        "for n in range(3):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "            for fd in range(3): os.close(fd)\n"
        f"            open({str(tmp_path)!r} + f'/pid-{{n}}.part', 'w').write(str(os.getpid()))\n"
        f"            os.rename({str(tmp_path)!r} + f'/pid-{{n}}.part',"
        f" {str(tmp_path)!r} + f'/pid-{{n}}')\n"
        "            time.sleep(60)\n"
        "        os._exit(0)\n"
        f"while len([n for n in os.listdir({str(tmp_path)!r})"
        " if n in ('pid-0', 'pid-1', 'pid-2')]) < 3: time.sleep(0.01)\n"
        f"{'print(1)' if ends == 'returns' else 'time.sleep(60)'}"
    )
    section = {"argv": [sys.executable, "-c", code], "timeout_seconds": 2}
    section["kill_after_seconds"] = 0.1
    running = await start(server, good, handlers={"exec": {"fork": section}})

    code_of = await answered(server, running, "fork")

    assert code_of == ("success" if ends == "returns" else "HANDLER_TIMEOUT")
    for number in range(3):
        await until_gone(int((tmp_path / f"pid-{number}").read_text()))
    await still_works(server, running)
    left = next(each for each in logged if each["event"] == "exec.left_processes")
    assert (left["command"], left["ended"]) == ("fork", 3)


HANDLERS = """
import asyncio, os, resource, signal, sys
from arc_agent import handler

@handler("good")
def good() -> str:
    return "done"

@handler("exit.loop")
async def exit_loop() -> None:
    os._exit(7)

@handler("exit.thread")
def exit_thread() -> None:
    os._exit(7)

@handler("exit.task")
async def exit_task() -> None:
    async def leave():
        sys.exit(0)
    await asyncio.gather(asyncio.create_task(leave()))

@handler("exit.left")
async def exit_left() -> str:
    async def leave():
        sys.exit(0)
    global LEFT
    LEFT = asyncio.create_task(leave())
    return "left"

@handler("interrupt")
async def interrupt() -> str:
    async def leave():
        raise KeyboardInterrupt
    global LEFT
    LEFT = asyncio.create_task(leave())
    return "left"

@handler("stop.loop")
async def stop_loop() -> str:
    asyncio.get_running_loop().stop()
    return "left"

@handler("cancel.all")
async def cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()

@handler("abort")
def abort() -> None:
    os.abort()

@handler("close")
def close() -> None:
    os.closerange(3, 1000)

@handler("deaf")
async def deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

@handler("memory")
def memory() -> int:
    size = int(open("/proc/self/statm").read().split()[0]) * 4096 + 50_000_000
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    try:
        return len([bytearray(1_000_000) for _ in range(1_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
"""


@pytest.fixture
def modules(tmp_path: Path) -> None:
    (tmp_path / "hostile_handlers.py").write_text(HANDLERS)


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("command", ["exit.loop", "exit.thread"])
async def test_a_handler_that_takes_the_agent_down_costs_no_finished_result(
    server: ScriptedServer, tmp_path: Path, command: str
) -> None:
    server.always["response"] = 503  # what is finished cannot be handed in yet
    server.send("good", command_id="cmd_done")
    async with agent(server, tmp_path, "--handlers", "hostile_handlers") as first:
        await server.until(lambda: len(server.seen("response")) > 0)
        server.send(command)
        assert await first.ended() != 0
    server.always.clear()
    before = len(server.responses("cmd_done"))
    async with agent(server, tmp_path, "--handlers", "hostile_handlers") as second:
        server.send("good", command_id="cmd_after")
        await server.until(lambda: bool(server.responses("cmd_after")))
        await server.until(lambda: len(server.responses("cmd_done")) > before)
        second.process.terminate()
        assert await second.ended() == 0

    assert inline(server.responses("cmd_done")[-1]) == b'"done"'
    assert inline(server.responses("cmd_after")[-1]) == b'"done"'


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("exit.task", "HANDLER_ERROR"),
        ("exit.left", "success"),
        ("interrupt", "success"),
        ("stop.loop", "success"),
    ],
)
async def test_a_task_of_a_handler_that_exits_fails_alone_and_is_logged(
    server: ScriptedServer, tmp_path: Path, command: str, answer: str
) -> None:
    async with agent(server, tmp_path, "--handlers", "hostile_handlers") as process:
        server.send(command)
        assert (await server.response()).get("code", "success") == answer
        server.send("good")
        assert inline(await server.response(2)) == b'"done"'
        logged = await process.until_logged("handler.ended_loop")
        process.process.terminate()
        assert await process.ended() == 0

    assert logged["level"] == "critical"


@pytest.mark.usefixtures("modules")
async def test_an_agent_that_ends_unasked_says_so_and_ends_with_1(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.send("cancel.all")
    async with agent(server, tmp_path, "--handlers", "hostile_handlers") as process:
        assert await process.ended() == 1
        assert (await process.until_logged("agent.ended"))["level"] == "critical"


@pytest.mark.usefixtures("modules")
async def test_an_agent_whose_handler_makes_it_deaf_still_stops_when_it_is_told_to(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.send("deaf")
    async with agent(server, tmp_path, "--handlers", "hostile_handlers") as process:
        await server.response()
        told = await process.until_logged("handler.changed_process")
        process.process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0

    assert told["what"] == ["SIGTERM", "SIGINT", "SIGHUP"]


@pytest.mark.usefixtures("modules")
async def test_a_handler_that_takes_all_memory_fails_alone(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.send("memory")
    async with agent(server, tmp_path, "--handlers", "hostile_handlers") as process:
        response = await server.response()
        server.send("good")
        assert inline(await server.response(2)) == b'"done"'
        process.process.terminate()
        assert await process.ended() == 0

    assert (response["code"], response["message"]) == ("HANDLER_ERROR", "MemoryError")


# Helpers


async def answered(server: ScriptedServer, running: Any, command: str, params: Any = None) -> str:
    """Send a command; the code of its response."""
    number = len(server.responses()) + 1
    server.send(command, params)
    await server.until(lambda: len(server.responses()) >= number or running.task.done())
    assert not running.task.done(), f"the agent ended: {command} {params}"
    return server.responses()[number - 1].get("code", "success")


async def still_works(server: ScriptedServer, running: Any) -> None:
    """A good command runs to its end on the same agent."""
    command_id = f"cmd_good_{len(server.requests)}"
    server.send("good", command_id=command_id)
    await server.until(lambda: bool(server.responses(command_id)) or running.task.done())
    assert not running.task.done()
    assert inline(server.responses(command_id)[0]) == b'"done"'
