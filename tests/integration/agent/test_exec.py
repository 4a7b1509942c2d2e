"""Programs as handlers, by YAML alone."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from arc_agent.handlers import no_descriptors
from arc_agent.handlers.declared import programs
from tests.support.processes import until_gone
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer, inline
from tests.support.waiting import until


def python(code: str, *more: str) -> list[str]:
    """An argv that runs a bit of Python, started fast."""
    return ["/usr/bin/python3", "-SIEc", code, *more]


async def run(server: ScriptedServer, start: Start, raw: bytes = b"{}", **section: Any) -> Any:
    """The response of one run of a declared program."""
    await start(server, handlers={"exec": {"x": section}})
    server.send("x", raw=raw)
    return await server.response()


async def test_params_come_by_standard_input(server: ScriptedServer, start: Start) -> None:
    response = await run(server, start, b'{"a": [1, "\xc3\xa9"]}', argv=["/bin/cat"])

    assert inline(response) == b'{"a":[1,"\\u00e9"]}'


async def test_params_come_in_a_file_where_an_argument_says_so(
    server: ScriptedServer, start: Start
) -> None:
    code = "import os,sys; print(oct(os.stat(sys.argv[1]).st_mode), open(sys.argv[1]).read())"
    response = await run(
        server, start, b'"$(reboot)"', argv=python(code, "{params_file}"), output="text"
    )

    assert json.loads(inline(response)) == '0o100600 "$(reboot)"\n'


async def test_large_params_do_not_block_a_program_that_reads_none(
    server: ScriptedServer, start: Start
) -> None:
    response = await run(server, start, b"x" * 500_000, argv=["/bin/echo", "7"])

    assert inline(response) == b"7"


async def test_the_environment_is_an_allow_list(
    server: ScriptedServer, start: Start, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.setenv("PASSED", "yes")
    code = "import os,json; print(json.dumps(dict(os.environ)))"
    response = await run(
        server, start, argv=python(code), env={"SET": "here"}, env_pass=["PASSED", "ABSENT"]
    )

    seen = json.loads(inline(response))
    seen.pop("LC_CTYPE", None)  # Python's own doing
    assert seen.pop("ARC_RUN").startswith("/")
    assert seen == {
        "SET": "here",
        "PASSED": "yes",
        "ARC_COMMAND": "x",
        "ARC_COMMAND_ID": "cmd_1",
        "ARC_ATTEMPT": "1",
        "ARC_DEPLOYMENT": "dep-1",
    }


async def test_an_exit_status_is_an_error_with_the_end_of_standard_error(
    server: ScriptedServer, start: Start
) -> None:
    code = "import sys; sys.stderr.write('x' * 20000 + 'the end'); sys.exit(3)"
    response = await run(server, start, argv=python(code), error_codes={"3": "NOT_READY"})

    assert response["code"] == "NOT_READY"
    assert response["message"] == "the program exited with status 3"
    assert response["details"].endswith("the end")
    assert len(response["details"]) <= 8192


async def test_a_signal_is_an_error_that_names_it(server: ScriptedServer, start: Start) -> None:
    response = await run(server, start, argv=python("import os; os.kill(os.getpid(), 9)"))

    assert response["message"] == "the program was ended by SIGKILL"


async def test_a_program_that_is_not_there_is_an_error(
    server: ScriptedServer, start: Start
) -> None:
    response = await run(server, start, argv=["/nowhere/program"])

    assert response == {
        "status": "error",
        "code": "HANDLER_ERROR",
        "message": "/nowhere/program cannot be started: No such file or directory",
    }


async def test_output_over_the_limit_is_cut_with_a_mark(
    server: ScriptedServer, start: Start
) -> None:
    response = await run(
        server, start, argv=python("print('y' * 999)"), output="text", max_output_bytes=100
    )

    assert json.loads(inline(response)) == "y" * 100 + "\n[arc-agent: 900 bytes cut]\n"


async def test_bytes_over_the_limit_are_cut_with_a_mark(
    server: ScriptedServer, start: Start
) -> None:
    response = await run(
        server, start, argv=python("print('y' * 999)"), output="bytes", max_output_bytes=100
    )

    assert inline(response) == b"y" * 100 + b"\n[arc-agent: 900 bytes cut]\n"


async def test_json_that_was_cut_is_no_json(server: ScriptedServer, start: Start) -> None:
    response = await run(server, start, argv=python("print([1] * 999)"), max_output_bytes=100)

    assert response["code"] == "HANDLER_ERROR"
    assert "over the limit of 100" in response["message"]


async def test_output_that_is_not_json_is_an_error(server: ScriptedServer, start: Start) -> None:
    response = await run(server, start, argv=["/bin/echo", "hello"])

    assert response["code"] == "HANDLER_ERROR"
    assert "not JSON" in response["message"]


async def test_a_time_out_ends_the_whole_process_group(
    server: ScriptedServer, start: Start, tmp_path: Path
) -> None:
    child = tmp_path / "child"
    code = (
        "import os,time,signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pid = os.fork()\n"
        f"if pid: open({str(child)!r}, 'w').write(str(pid))\n"
        "time.sleep(60)"
    )
    response = await run(
        server, start, argv=python(code), timeout_seconds=0.5, kill_after_seconds=0.1
    )

    assert response["code"] == "HANDLER_TIMEOUT"
    await until_gone(int(child.read_text()))


async def test_children_that_a_program_leaves_behind_do_not_hold_up_its_result(
    server: ScriptedServer, start: Start, tmp_path: Path
) -> None:
    child = tmp_path / "child"
    code = (
        "import os,time,sys\n"
        "pid = os.fork()\n"
        "if not pid: time.sleep(60)\n"
        f"open({str(child)!r}, 'w').write(str(pid)); print(1)"
    )
    response = await run(server, start, argv=python(code))

    assert inline(response) == b"1"
    await until_gone(int(child.read_text()))


async def test_a_drain_ends_programs_tidily(
    server: ScriptedServer, start: Start, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    code = (
        "import signal,sys,time\n"
        f"signal.signal(15, lambda *_: (open({str(mark)!r}, 'a').write('ended'), sys.exit(0)))\n"
        f"open({str(mark)!r}, 'a').write('started '); time.sleep(60)"
    )
    section = {"argv": python(code), "idempotent": True}
    agent = await start(server, handlers={"exec": {"x": section}})
    server.send("x")
    await until(lambda: mark.exists() and mark.read_text())
    await agent.stop()

    assert mark.read_text() == "started ended"
    assert server.seen("release")[0].json()["reason"] == "drain"


async def test_a_program_that_finds_no_descriptors_is_given_back_and_not_failed(
    server: ScriptedServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(no_descriptors, "PUT_OFF_SECONDS", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(programs.subprocess, "Popen", refuse)
        await start(server, handlers={"exec": {"x": {"argv": ["/bin/echo", "7"]}}})
        server.send("x", command_id="cmd_1")
        await server.until(lambda: bool(server.seen("release")))
    server.send("x", command_id="cmd_1")

    assert inline(await server.response()) == b"7"
    assert server.seen("release")[0].json()["reason"] == "retry"
    assert len(server.responses()) == 1
