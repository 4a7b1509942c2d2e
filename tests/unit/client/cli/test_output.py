"""Output in a pipe: which stream takes what. Terminals have a test of their own."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from arc_client.cli import output, views
from arc_client.cli.explain import explain
from arc_client.errors import failure_of
from arc_protocol.messages.agents import AgentInfo, AgentStatus
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import ErrorResponse, InlineBody, SuccessResponse
from arc_protocol.messages.commands import CommandStatus
from arc_runtime.terminal.table import print_note

CREATED = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)


def command(**changes: object) -> CommandStatus:
    """A status as our server gives it."""
    status = {
        "command_id": "cmd_1",
        "state": State.SUCCEEDED,
        "attempt": 2,
        "deployment_id": "dep",
        "command": "echo",
        "created_at": CREATED,
        "completed_at": CREATED + timedelta(seconds=1.25),
        "max_attempts": 5,
    }
    return CommandStatus(**(status | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "written"),
    [
        (b'{"a":  1.10}', b'{"a":  1.10}\n'),
        (b"[1]\n", b"[1]\n"),
        (b"", b""),
        (b"plain text", b"plain text"),
        (b"\xff\x00", b"\xff\x00"),
    ],
)
def test_a_result_in_a_pipe_is_as_it_came(
    capfdbinary: pytest.CaptureFixture[bytes], data: bytes, written: bytes
) -> None:
    output.write_result(data)

    assert capfdbinary.readouterr() == (written, b"")


@pytest.mark.parametrize(
    "data", [b"\xff", b"a\x00", b"\x1b[2J", b"a\rb\x9b".replace(b"\x9b", b"\xc2\x9b")]
)
def test_bytes_that_would_garble_a_terminal_are_not_shown_on_one(
    monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    with pytest.raises(output.UnfitForTerminal):
        output.write_result(data)


def test_a_table_in_a_pipe_is_plain_and_cuts_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    views.show_commands([command(command="x" * 300), command(command_id="cmd_2")])

    header, first, second = capfd.readouterr().out.splitlines()
    assert header.split() == [
        *["ID", "STATE", "ERROR", "COMMAND", "DEPLOYMENT", "CREATED", "TOOK", "ATTEMPT"]
    ]
    assert "x" * 300 in first
    assert second.startswith("cmd_2")
    assert second.endswith("1.25s  2")


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.EXPIRED])
def test_a_command_that_has_ended_is_not_to_be_cancelled(
    capfd: pytest.CaptureFixture[str], state: State
) -> None:
    views.show_commands([command(state=state, cancel_requested=True)])
    views.show_status(command(state=state, cancel_requested=True))
    views.show_commands([command(state=State.DISPATCHED, cancel_requested=True)])

    out = capfd.readouterr().out
    assert out.count("CANCEL") == out.count("CANCELLING") == 1


def test_a_cancelled_command_is_shown_as_cancelled(capfd: pytest.CaptureFixture[str]) -> None:
    response = ErrorResponse(code="CANCELLED", message="stopped")
    views.show_commands([command(state=State.FAILED, error_code="CANCELLED")])
    views.show_status(command(state=State.FAILED, response=response))

    out = capfd.readouterr().out
    assert "FAILED" not in out
    assert "state       CANCELLED\n" in out


def test_the_code_of_a_failure_is_a_column(capfd: pytest.CaptureFixture[str]) -> None:
    views.show_commands([command(state=State.FAILED, error_code="HANDLER_TIMEOUT")])

    assert "FAILED  HANDLER_TIMEOUT  echo" in capfd.readouterr().out


def test_a_status_shows_what_is_known_and_no_more(capfd: pytest.CaptureFixture[str]) -> None:
    response = SuccessResponse(response=InlineBody.of(b"12345"))
    views.show_status(command(response=response))
    views.show_status(CommandStatus(command_id="cmd_2", state=State.PENDING, attempt=1))

    shown = dict(line.split(None, 1) for line in capfd.readouterr().out.splitlines()[:8])
    assert shown["state"] == "SUCCEEDED"
    assert shown["attempt"] == "2 of 5"
    assert shown["completed"].startswith("2026-11-2")
    assert shown["completed"].endswith(" ago")
    assert shown["took"] == "1.25s"


def test_the_size_of_a_result_is_that_of_its_bytes(capfd: pytest.CaptureFixture[str]) -> None:
    for length in (0, 1, 2, 3, 4):
        body = InlineBody.of(b"x" * length)
        views.show_status(command(response=SuccessResponse(response=body)))
        assert f"result      {length} bytes\n" in capfd.readouterr().out


def test_a_failure_shows_its_code_and_details(capfd: pytest.CaptureFixture[str]) -> None:
    response = ErrorResponse(code="E", message="no\x1b[m", details="line 1\nline 2")
    views.show_status(command(state=State.FAILED, response=response))

    out = capfd.readouterr().out
    assert "error       E: no\\x1b[m\n" in out
    assert "details     line 1\n            line 2\n" in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"state": State.FAILED, "response": ErrorResponse(code="CANCELLED", message="")},
            "cmd_1 is cancelled",
        ),
        ({"state": State.SUCCEEDED}, "cmd_1 had ended before: SUCCEEDED"),
        ({"state": State.DISPATCHED}, "cmd_1 is being cancelled; its agent has yet to stop it"),
    ],
)
def test_what_became_of_a_cancel(
    capfd: pytest.CaptureFixture[str], changes: dict[str, object], said: str
) -> None:
    views.show_cancel(command(**changes))

    assert capfd.readouterr().out == f"{said}\n"


def test_an_error_goes_to_stderr_as_text_or_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    error = failure_of("cmd_1", ErrorResponse(code="E", message="m\x07", details="d1\nd2"))

    output.show_error(error, explain(error), as_json=False)
    text = capfd.readouterr()
    output.show_error(error, explain(error), as_json=True)
    record = capfd.readouterr()

    assert text == ("", "error: command cmd_1 failed: E: m\\x07\n  d1\n  d2\n")
    assert record.out == ""
    assert json.loads(record.err)["message"] == "m\x07"


def test_a_paused_agent_shows_with_its_note(capsys: pytest.CaptureFixture[str]) -> None:
    agent = AgentInfo(
        agent_id="a1",
        deployment_id="dep",
        version="1",
        hostname="host",
        handlers=[],
        status=AgentStatus(state="paused", note="new disk", until=CREATED),
        first_seen_at=CREATED,
        last_seen_at=CREATED,
        holding=[],
    )

    views.show_agents([agent])

    out = capsys.readouterr().out
    assert "paused" in out
    assert ": new disk" in out


FOREIGN = "a[/x]b[link=y]\x1b[2Jc\x9b31md\u202ee"
SHOWN = "a[/x]b[link=y]\\x1b[2Jc\\x9b31md\\u202ee"


def test_foreign_text_is_text_wherever_it_stands(capfd: pytest.CaptureFixture[str]) -> None:
    failed = failure_of(FOREIGN, ErrorResponse(code=FOREIGN, message=FOREIGN, details=FOREIGN))
    listed = command(command_id=FOREIGN, deployment_id=FOREIGN, command=FOREIGN)

    views.show_status(listed)
    views.show_commands([listed], is_wide=True)
    views.show_cancel(listed)
    output.show_error(failed, explain(failed), as_json=False)
    output.show_message(FOREIGN)
    print_note(FOREIGN)
    out, err = capfd.readouterr()

    for written in (out, err):
        assert SHOWN in written
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", written)


def test_foreign_text_in_json_is_escaped_and_says_the_same(
    capfd: pytest.CaptureFixture[str],
) -> None:
    failed = failure_of("cmd_1", ErrorResponse(code="E", message=FOREIGN))

    output.show_error(failed, explain(failed), as_json=True)
    err = capfd.readouterr().err

    assert json.loads(err)["message"] == str(failed.message)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", err)
