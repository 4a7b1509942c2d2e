"""The command line `arc` as people type it: text results, slips, and the beginnings of ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arc_client.cli import lookup
from tests.support.fake_server import FakeServer, StoredCommand, agent, one_kind
from tests.support.shell import arc, terminal

pytestmark = one_kind
TEXT = 'two\nlines, "quoted" \u202e\x1b[2J'


def stored(server: FakeServer, command_id: str, state: str, code: str | None = None) -> None:
    """Put a command into the server."""
    command = StoredCommand(command_id, {"deploymentId": "dep", "command": "echo"}, state)
    if code is not None:
        command.response = {"status": "error", "code": code, "message": "m"}
        command.ended.set()
    server.commands[command_id] = command


async def test_a_text_result_is_text_on_a_terminal(server: FakeServer) -> None:
    params = json.dumps('two\nlines, "quoted" and \u202e')
    async with terminal("invoke", "dep", "echo", "--params", params, url=server.url) as tty:
        assert await tty.end() == 0
        await tty.until("and")

    assert 'two\r\nlines, "quoted" and \\u202e\r\n' in tty.shown


async def test_a_text_result_in_a_pipe_is_json_unless_raw_output_is_asked_for(
    server: FakeServer,
) -> None:
    send = ["invoke", "dep", "echo", "--params", json.dumps(TEXT)]

    as_json = await arc(*send, url=server.url)
    as_text = await arc(*send, "-r", url=server.url)
    waited = await arc("wait", "cmd_1", "--raw-output", url=server.url)
    other = await arc("invoke", "dep", "echo", "--params", "[1]", "-r", url=server.url)

    assert as_json.json() == TEXT
    assert as_text.out == waited.out == f"{TEXT}\n".encode()
    assert other.out == b"[1]\n"


async def test_raw_output_and_a_file_exclude_each_other(server: FakeServer, tmp_path: Path) -> None:
    ended = await arc("invoke", "dep", "echo", "--out", tmp_path / "f", "-r", url=server.url)

    assert ended.code == 2
    assert "give --out or --raw-output" in ended.err
    assert not server.commands


@pytest.mark.parametrize("name", ["p.json", "with space.json"])
async def test_a_file_that_lacks_its_at_sign_is_noticed(
    server: FakeServer, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.write_text("{}")

    ended = await arc("invoke", "dep", "echo", "--params", file, url=server.url)
    missing = await arc("invoke", "dep", "echo", "--params", tmp_path / "none", url=server.url)

    quoted = f"'{file}'" if " " in name else file
    assert ended.code == 2
    assert f"  Did you mean --params @{quoted}?\n" in ended.err
    assert "Did you mean" not in missing.err


async def test_details_of_a_failure_are_json(server: FakeServer) -> None:
    stored(server, "cmd_1", "FAILED", "E")
    response = server.commands["cmd_1"].response
    assert response is not None
    response["details"] = '{"rows":[1]}'

    for_people = await arc("wait", "cmd_1", url=server.url)
    for_programs = await arc("wait", "cmd_1", "--json", url=server.url)

    assert '  {\n    "rows": [\n      1\n    ]\n  }\n' in for_people.err
    assert json.loads(for_programs.err)["details"] == {"rows": [1]}


async def test_cancelled_commands_are_filtered_as_such(server: FakeServer) -> None:
    for number, (state, code) in enumerate(
        [("FAILED", "E"), ("FAILED", "CANCELLED"), ("SUCCEEDED", None), ("FAILED", "CANCELLED")]
    ):
        stored(server, f"cmd_{number}", state, code)

    async def ids(*options: str) -> list[str]:
        listed = await arc("list", *options, "--json", url=server.url)
        return [each["commandId"] for each in listed.json()]

    assert await ids("--state", "cancelled") == ["cmd_3", "cmd_1"]
    assert await ids("--state", "CANCELLED", "--limit", "1") == ["cmd_3"]
    assert await ids("--state", "failed") == ["cmd_0"]
    assert await ids() == ["cmd_3", "cmd_2", "cmd_1", "cmd_0"]


async def test_the_wire_state_of_a_cancelled_command_stays(server: FakeServer) -> None:
    stored(server, "cmd_1", "FAILED", "CANCELLED")

    (listed,) = (await arc("list", "-o", "json", url=server.url)).json()

    assert (listed["state"], listed["errorCode"]) == ("FAILED", "CANCELLED")


async def test_a_list_says_that_there_are_more(server: FakeServer) -> None:
    for number in range(4):
        stored(server, f"cmd_{number}", "PENDING")

    some = await arc("list", "--limit", "3", url=server.url)
    every = await arc("list", "--limit", "4", url=server.url)

    assert some.err == "(there are more: --limit 6)\n"
    assert (every.err, len(every.out.splitlines())) == ("", 5)


@pytest.mark.parametrize("verb", ["status", "wait", "events", "cancel"])
async def test_the_beginning_of_an_id_names_a_command(server: FakeServer, verb: str) -> None:
    for command_id in ("cmd_019aaa", "cmd_019bbb"):
        stored(server, command_id, "FAILED", "E")

    one = await arc(verb, "cmd_019a", url=server.url)
    several = await arc(verb, "cmd_019", "--json", url=server.url)
    none = await arc(verb, "cmd_018a", "--json", url=server.url)

    assert "no such command" not in one.err
    assert server.count("GET", "/v1/commands/cmd_019aaa") or verb == "cancel"
    assert not server.count("POST", "/v1/commands/cmd_019bbb")
    assert several.code == none.code == 2
    refused = json.loads(several.err)
    assert refused["code"] == "AMBIGUOUS_ID"
    assert refused["message"].endswith(":\ncmd_019aaa\ncmd_019bbb")
    assert json.loads(none.err)["code"] == "COMMAND_NOT_FOUND"


async def test_the_beginning_of_an_id_is_looked_for_among_the_newest(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "SEARCHED", 2)
    for command_id in ("cmd_old1", "cmd_new1", "cmd_new2"):
        stored(server, command_id, "SUCCEEDED")

    old = await arc("status", "cmd_old", url=server.url)

    assert old.code == 2
    assert "no such command: cmd_old" in old.err


@pytest.mark.parametrize(
    "line",
    [
        ["list", "--deployment", "acme-eu1"],
        ["agents", "--deployment", "acme-eu1"],
        ["describe", "acme-eu1", "echo"],
    ],
)
async def test_a_deployment_that_is_not_there_gets_the_likeliest(
    server: FakeServer, line: list[str]
) -> None:
    server.agents = [agent("a1", "acme-eu-1")]

    ended = await arc(*line, url=server.url)

    assert "Did you mean acme-eu-1?" in ended.err


async def test_a_mistyped_deployment_of_a_command_gets_the_likeliest(server: FakeServer) -> None:
    server.agents = [agent("a1", "acme-eu-1")]
    server.waiting = {"reason": "never_seen", "isAbsent": True}

    ended = await arc("invoke", "acme-eu1", "vacuum", url=server.url)

    assert ended.code == 6
    assert "was cancelled. Did you mean acme-eu-1?\n" in ended.err
