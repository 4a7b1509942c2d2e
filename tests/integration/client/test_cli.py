"""`arc` in a pipe, as scripts use it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

from tests.support.fake_server import FakeServer, HandlerFailed, agent, answer, echo, one_kind
from tests.support.shell import arc, arc_process, start

LARGE = b'"' + b"0123456789abcdef" * 100_000 + b'"'


async def test_a_result_is_printed_and_nothing_else(server: FakeServer) -> None:
    ended = await arc_process("invoke", "dep", "echo", "--params", '{"a":  1.10}', url=server.url)

    assert (ended.code, ended.out, ended.err) == (0, b'{"a":  1.10}\n', "")


@one_kind
async def test_large_params_and_results_pass_byte_for_byte_and_without_a_bar(
    server: FakeServer, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(LARGE)
    out = tmp_path / "out"

    from_file, from_stdin = await asyncio.gather(
        arc_process("invoke", "dep", "echo", "--params", f"@{tmp_path / 'in'}", url=server.url),
        arc_process(
            "invoke", "dep", "echo", "--params", "-", "--out", out, url=server.url, stdin=LARGE
        ),
    )

    assert (from_file.code, from_file.out, from_file.err) == (0, LARGE, "")
    assert (from_stdin.code, from_stdin.out, from_stdin.err) == (0, b"", "")
    assert out.read_bytes() == LARGE
    assert server.uploads.total() == 2


@one_kind
async def test_bytes_that_are_not_json_pass_too(server: FakeServer) -> None:
    ended = await arc(
        "invoke", "dep", "echo", "--params", "-", "--raw", url=server.url, stdin=b"\xff\n"
    )

    assert (ended.code, ended.out) == (0, b"\xff\n")


@one_kind
async def test_a_failure_ends_with_1_its_code_and_its_details(server: FakeServer) -> None:
    for_people, for_programs = await asyncio.gather(
        arc_process("invoke", "dep", "fail", "--params", '{"code":"E_DISK"}', url=server.url),
        arc_process("invoke", "dep", "fail", "--json", url=server.url),
    )

    assert (for_people.code, for_people.out) == (1, b"")
    assert "failed: E_DISK: it did not work\n  line 3\n" in for_people.err
    assert (for_programs.code, for_programs.out) == (1, b"")
    record = json.loads(for_programs.err)
    assert record["code"] == "HANDLER_ERROR"
    assert record["details"] == "line 3"
    assert record["commandId"] in server.commands


@one_kind
async def test_a_command_that_is_not_done_in_time_goes_on_and_can_be_waited_for(
    server: FakeServer,
) -> None:
    finish = asyncio.Event()

    async def slow(params: bytes) -> bytes:
        await finish.wait()
        return params

    server.handlers["slow"] = slow
    late = await arc("invoke", "dep", "slow", "--timeout", "100ms", url=server.url)
    finish.set()
    waited = await arc("wait", "cmd_1", url=server.url)

    assert late.code == 5
    assert "command cmd_1 is still DISPATCHED after 100ms; it goes on" in late.err
    assert "arc wait cmd_1" in late.err
    assert "arc cancel cmd_1" in late.err
    assert (waited.code, waited.out) == (0, b"{}\n")


@one_kind
async def test_a_command_can_be_sent_and_left(server: FakeServer) -> None:
    for_people = await arc("invoke", "dep", "echo", "--no-wait", url=server.url)
    for_programs = await arc("invoke", "dep", "nobody", "--no-wait", "--json", url=server.url)

    assert (for_people.code, for_people.out, for_people.err) == (0, b"cmd_1\n", "")
    assert for_programs.json() == {"commandId": "cmd_2", "state": "PENDING"}


@one_kind
async def test_options_reach_the_server(server: FakeServer) -> None:
    how = ["--target", "db", "--key", "k", "--max-attempts", "2", "--deadline", "5m"]
    ended = await arc("invoke", "dep", "echo", *how, url=server.url)

    assert ended.code == 0
    create = server.commands["cmd_1"].create
    assert create["targetResourceId"] == "db"
    assert create["idempotencyKey"] == "k"
    assert create["maxAttempts"] == 2
    assert create["deadline"].endswith("Z")


@one_kind
async def test_what_is_typed_wrong_ends_with_2_before_anything_is_sent(
    server: FakeServer, tmp_path: Path
) -> None:
    runs = {
        "line 1 column 2": ("invoke", "dep", "echo", "--params", "{a}"),
        "no/file": ("invoke", "dep", "echo", "--params", "@no/file"),
        "a duration": ("invoke", "dep", "echo", "--timeout", "soon"),
        "Did you mean --timeout?": (
            "invoke",
            "dep",
            "echo",
            "--tiemout",
            "1s",
        ),
        "there is no directory": ("invoke", "dep", "echo", "--out", "no/dir/file"),
        "--state: LOST is not one of": ("list", "--state", "LOST"),
        "token file": ("list", "--token-file", tmp_path / "none"),
        "not a server URL": ("list", "--server", "localhost:80"),
    }

    ended = await asyncio.gather(*(arc(*run, url=server.url) for run in runs.values()))

    for said, run in zip(runs, ended, strict=True):
        assert (run.code, run.out) == (2, b""), run
        assert said in run.err
    assert server.requests == []


@one_kind
async def test_without_a_server_it_says_how_to_name_one(server: FakeServer) -> None:
    nothing, before, after = await asyncio.gather(
        arc("list"),
        arc("--server", server.url, "list", "--json"),
        arc("list", "--json", "--server", server.url),
    )

    assert nothing.code == 2
    assert "--server URL or set ARC_SERVER_URL" in nothing.err
    assert before.json() == after.json() == []


@one_kind
async def test_a_server_that_is_not_there_ends_with_3_and_the_key(server: FakeServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        ended = await arc_process(
            "invoke", "dep", "echo", "--timeout", "200ms", "--key", "k", url=url
        )

    assert ended.code == 3
    assert f"cannot reach {url}: Connection refused" in ended.err
    assert "--key k" in ended.err


@one_kind
async def test_a_token_is_asked_for_and_taken_from_where_it_is(
    server: FakeServer, tmp_path: Path
) -> None:
    server.token = "right"
    file = tmp_path / "token"
    file.write_text("right\n")
    run = ("invoke", "dep", "echo")

    wrong, right, in_file = await asyncio.gather(
        arc_process(*run, url=server.url, ARC_TOKEN="wrong"),
        arc_process(*run, url=server.url, ARC_TOKEN="right"),
        arc_process(*run, "--token-file", file, url=server.url, ARC_TOKEN="wrong"),
    )

    assert [wrong.code, right.code, in_file.code] == [4, 0, 0]
    assert "--token-file" in wrong.err
    assert "wrong" not in wrong.err


@one_kind
async def test_what_a_handler_has_said_is_shown(server: FakeServer) -> None:
    gate = asyncio.Event()

    async def slow(params: bytes) -> bytes:
        await gate.wait()
        return params

    server.handlers["slow"] = slow
    await arc("invoke", "dep", "slow", "--no-wait", url=server.url)
    await server.say("cmd_1", "one", "two\x1b[2J", progress={"done": 3.0, "total": 4.0})
    following = asyncio.ensure_future(arc_process("events", "cmd_1", "-f", url=server.url))
    await server.until(lambda: server.count("GET", "waitSeconds") >= 1)
    await server.say("cmd_1", "three")
    gate.set()

    once, as_json, followed, unknown = await asyncio.gather(
        arc("events", "cmd_1", url=server.url),
        arc("events", "cmd_1", "--json", url=server.url),
        following,
        arc("events", "cmd_9", url=server.url),
    )

    shown = [line.split(maxsplit=2)[2] for line in followed.out.decode().splitlines()]
    assert [shown[0], shown[2]] == ["one", "three"]
    assert b"\x1b" not in followed.out + once.out
    assert followed.code == once.code == 0
    assert once.out.count(b"\n") == 3
    assert "3 of 4" in once.err
    assert json.loads(as_json.out.splitlines()[0])["progress"]["done"] == 3.0
    assert unknown.code == 2


async def test_a_server_that_keeps_no_events_says_so(server: FakeServer) -> None:
    if server.knows_extensions:
        server.faults["events"] = [answer(404)]

    asked = await arc("events", "cmd_1", url=server.url)

    assert asked.code == 2
    assert "the base protocol only does not offer this" in asked.err


@one_kind
async def test_commands_are_shown_as_tables_or_as_json(server: FakeServer) -> None:
    server.agents = [agent("a1", "dep"), agent("a2", "other")]
    await arc("invoke", "dep", "echo", "--params", "7", url=server.url)
    await arc("invoke", "dep", "fail", url=server.url)

    listed, table, status, facts, agents = await asyncio.gather(
        arc("list", "--state", "failed", "--json", url=server.url),
        arc("list", url=server.url),
        arc("status", "cmd_1", "--json", url=server.url),
        arc("status", "cmd_2", url=server.url),
        arc("agents", "--deployment", "dep", "--json", url=server.url),
    )

    assert [one["commandId"] for one in listed.json()] == ["cmd_2"]
    assert [line.split()[0] for line in table.out.decode().splitlines()] == ["ID", "cmd_2", "cmd_1"]
    assert status.json()["state"] == "SUCCEEDED"
    assert status.json()["response"]["response"]["inlineBase64"] == "Nw=="
    assert facts.code == 0
    assert b"error       HANDLER_ERROR: it did not work" in facts.out
    assert [one["agentId"] for one in agents.json()] == ["a1"]


@one_kind
async def test_receivers_that_do_not_register_are_listed_with_the_agents(
    server: FakeServer,
) -> None:
    server.agents = [agent("a1", "dep")]
    target = {"resourceId": "vault-agent", "resourceType": "daemon"}
    seen = {"deploymentId": "dep", "target": target, "lastSeenAt": "2026-11-23T20:00:00Z"}
    server.receivers = [seen]

    table, as_json, offers = await asyncio.gather(
        arc("agents", url=server.url),
        arc("agents", "--json", url=server.url),
        arc("agents", "--handlers", "--json", url=server.url),
    )

    assert [each.get("agentId") for each in as_json.json()] == ["a1", None]
    assert as_json.json()[1] == seen
    assert [each["agentId"] for each in offers.json()] == ["a1"]
    assert "vault-agent" in table.out.decode()
    assert table.out.count(b"\n") > 2


@one_kind
async def test_the_hint_for_an_unknown_command_allows_for_receivers_that_do_not_register(
    server: FakeServer,
) -> None:
    failed = await arc(
        "invoke", "dep", "fail", "--params", '{"code":"UNKNOWN_COMMAND"}', url=server.url
    )

    assert failed.code == 1
    assert "lists those of agents that register" in failed.err


@one_kind
async def test_an_unknown_command_gets_the_name_of_the_likely_one(server: FakeServer) -> None:
    server.agents = [agent("a1", "dep")]

    async def unknown(_params: bytes) -> bytes:
        raise HandlerFailed("UNKNOWN_COMMAND", "no handler for 'ecoh'")

    server.handlers["ecoh"] = unknown

    failed = await arc("invoke", "dep", "ecoh", url=server.url)

    assert failed.code == 1
    assert "UNKNOWN_COMMAND: no handler for 'ecoh'. Did you mean echo?" in failed.err


async def test_a_command_that_is_cancelled_is_so_for_who_waits_for_it(server: FakeServer) -> None:
    waiting = asyncio.ensure_future(arc_process("invoke", "dep", "nobody", url=server.url))
    await server.until(lambda: server.count("GET", "/v1/commands/cmd_1") > 0)
    cancelled = await arc("cancel", "cmd_1", url=server.url)

    if not server.knows_extensions:
        assert cancelled.code == 2
        assert "base protocol only does not offer this" in cancelled.err
        server.handlers["nobody"] = echo
        server.run("cmd_1")
        assert (await waiting).code == 0
        return
    assert (cancelled.code, cancelled.out) == (0, b"cmd_1 is cancelled\n")
    ended = await waiting
    assert ended.code == 1
    assert "command cmd_1 was cancelled" in ended.err


@one_kind
async def test_an_id_that_is_not_there_ends_with_2(server: FakeServer) -> None:
    runs = await asyncio.gather(
        *(arc(what, "cmd_9", url=server.url) for what in ("status", "wait"))
    )

    for run in runs:
        assert run.code == 2
        assert "no such command: cmd_9 (COMMAND_NOT_FOUND)" in run.err


@one_kind
async def test_ctrl_c_in_a_pipe_leaves_at_once_and_says_how_to_go_on(server: FakeServer) -> None:
    process = await start("invoke", "dep", "nobody", url=server.url)
    await server.until(lambda: server.count("GET", "/v1/commands/cmd_1") > 0)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()

    assert (process.returncode, out) == (130, b"")
    said = (
        "interrupted; command cmd_1 goes on\n  Wait on: arc wait cmd_1\n"
        "  Stop it: arc cancel cmd_1\n"
    )
    assert err.decode() == said
    assert server.commands["cmd_1"].state == "PENDING"


@one_kind
async def test_ctrl_c_before_the_server_answered_says_how_not_to_run_twice(
    server: FakeServer,
) -> None:
    server.faults["create"] = [answer(503)] * 1000
    process = await start("invoke", "dep", "echo", "--key", "k", url=server.url)
    await server.until(lambda: server.count("POST", "/v1/commands") > 0)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()

    assert process.returncode == 130
    assert err.decode().endswith(
        "may or may not have been sent\n"
        "  To send it again without running it twice: the same with --key k\n"
    )


@one_kind
async def test_ctrl_c_while_stdin_is_read_leaves_with_nothing_sent(server: FakeServer) -> None:
    process = await start("invoke", "dep", "echo", "--params", "-", url=server.url)
    assert process.stdin is not None
    # More than a pipe holds: once it is drained, a reader is at the other end.
    process.stdin.write(b" " * 1_000_000)
    await process.stdin.drain()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    err = await process.stderr.read()
    process.stdin.close()

    assert await process.wait() == 130
    assert err.decode().startswith("interrupted;")
    assert server.requests == []


@one_kind
async def test_a_reader_that_leaves_ends_it_quietly(server: FakeServer) -> None:
    async def export(params: bytes) -> bytes:
        return LARGE * 4

    server.handlers["export"] = export
    reading, writing = os.pipe()
    process = await start("invoke", "dep", "export", url=server.url, stdout=writing)
    os.close(writing)
    assert await asyncio.to_thread(os.read, reading, 1) == b'"'
    os.close(reading)
    _, err = await process.communicate()

    assert (process.returncode, err) == (128 + signal.SIGPIPE, b"")


async def test_help_loads_neither_the_http_client_nor_the_tables() -> None:
    program = "import sys, arc_client.cli.main; print({'aiohttp', 'rich'} & set(sys.modules))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()

    assert out == b"set()\n"
    ended = await arc_process("--help")
    assert ended.code == 0
    assert b"invoke" in ended.out
