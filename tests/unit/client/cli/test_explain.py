"""Errors as a person reads them, with their exit codes."""

from __future__ import annotations

import pytest

from arc_client import errors
from arc_client.cli.explain import as_record, explain
from arc_client.cli.output import laid_out
from arc_client.errors import error_of, failure_of
from arc_protocol.errors import ArcError
from arc_protocol.messages.bodies import ErrorResponse


def answer(status: int, code: str | None, message: str = "m") -> ArcError:
    """Return what the server, or something in front of it, answered."""
    body = f'{{"code":"{code}","message":"{message}"}}' if code else "<html>"
    return error_of(status, body.encode(), url="https://h/v1")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (failure_of("c1", ErrorResponse(code="E", message="m")), 1, "command c1 failed: E: m"),
        (failure_of("c1", ErrorResponse(code="CANCELLED", message="m")), 1, "c1 was cancelled"),
        (failure_of("c1", None), 1, "gives no reason"),
        (errors.CommandExpired("command c1 expired", command_id="c1"), 1, "c1 expired"),
        (errors.CommandTimeout("c1 is still P", command_id="c1", state=None), 5, "it goes on"),
        (errors.ConfigurationError("no server given"), 2, "no server given"),
        (errors.InvalidParams("not JSON"), 2, "not JSON"),
        (answer(400, "INVALID_COMMAND"), 2, "m (INVALID_COMMAND)"),
        (answer(404, "COMMAND_NOT_FOUND"), 2, "m (COMMAND_NOT_FOUND)"),
        (answer(409, "IDEMPOTENCY_KEY_REUSED"), 2, "m (IDEMPOTENCY_KEY_REUSED)"),
        (answer(413, "PAYLOAD_TOO_LARGE"), 2, "m (PAYLOAD_TOO_LARGE)"),
        (answer(418, "TEAPOT"), 2, "m (TEAPOT)"),
        (answer(404, None), 2, "HTTP 404"),
        (answer(302, None), 2, "HTTP 302"),
        (errors.ServerUnreachable("cannot reach https://h"), 3, "cannot reach"),
        (answer(503, "UNAVAILABLE"), 3, "m (UNAVAILABLE)"),
        (answer(500, "COMMANDS_ERROR"), 3, "m (COMMANDS_ERROR)"),
        (answer(500, "COMMAND_TARGET_NOT_FOUND"), 2, "m (COMMAND_TARGET_NOT_FOUND)"),
        (answer(500, "GENERIC_ERROR"), 3, "m (GENERIC_ERROR)"),
        (answer(429, "RATE_LIMITED"), 3, "m (RATE_LIMITED)"),
        (answer(502, None), 3, "HTTP 502"),
        (errors.UploadFailed("no", command_id="c1"), 3, "will not run"),
        (errors.ResultUnreadable("no", command_id="c1"), 3, "c1 is done, but"),
        (answer(401, "UNAUTHORIZED"), 4, "does not accept this token"),
        (answer(403, "FORBIDDEN"), 4, "does not allow it"),
        (answer(403, None), 4, "does not allow it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_error_has_its_exit_code_and_words(error: ArcError, code: int, said: str) -> None:
    explanation = explain(error)

    assert explanation.exit_code == code
    assert said in explanation.what


def test_a_command_that_goes_on_comes_with_what_to_type_next() -> None:
    error = errors.CommandTimeout("it is still PENDING", command_id="cmd_1", state=None)

    assert explain(error).next_steps == ("Wait on: arc wait cmd_1", "Stop it: arc cancel cmd_1")


def test_an_id_that_a_shell_would_obey_is_quoted() -> None:
    error = errors.CommandTimeout("it is still PENDING", command_id="a; rm -r", state=None)

    assert "arc wait 'a; rm -r'" in explain(error).next_steps[0]


def test_a_create_of_unknown_outcome_comes_with_the_key_to_repeat_it() -> None:
    error = errors.ServerUnreachable("down", idempotency_key="k-1")

    assert any("--key k-1" in step for step in explain(error).next_steps)


def test_a_program_gets_the_same_as_a_record() -> None:
    error = failure_of("c1", ErrorResponse(code="E", message="m", details="d"))

    assert as_record(error, explain(error)) == {
        "code": "E",
        "message": "m",
        "commandId": "c1",
        "details": "d",
        "exitCode": 1,
    }


@pytest.mark.parametrize(
    ("details", "shown"),
    [
        ('{"rows": [1, 2]}', {"rows": [1, 2]}),
        ("[1]", [1]),
        ("line 3", "line 3"),
        ("12", "12"),
        ('{"a"', '{"a"'),
        ("[" * 5_000, "[" * 5_000),
    ],
)
def test_details_that_are_json_are_json_in_the_record(details: str, shown: object) -> None:
    error = failure_of("c1", ErrorResponse(code="E", message="m", details=details))

    assert as_record(error, explain(error))["details"] == shown


def test_details_that_are_nested_too_deeply_are_shown_as_they_are() -> None:
    deep = "[" * 5_000 + "]" * 5_000

    assert laid_out(deep) == deep
