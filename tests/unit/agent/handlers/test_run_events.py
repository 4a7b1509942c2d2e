"""The unsent events of one run: bounded, numbered, without secrets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import structlog

from arc_agent.config.sections import EventsSection
from arc_agent.handlers.events import HandlerLog, RunEvents
from arc_protocol.codec import encode
from arc_protocol.messages.events import MAX_EVENTS_BYTES, Progress


def run_events(**settings: Any) -> RunEvents:
    return RunEvents("cmd_1", "lease_1", EventsSection(**settings), lambda: None)


def messages(said: RunEvents) -> list[str]:
    pending = said.pending()
    return [] if pending is None else [line.message for line in pending.lines]


def test_lines_stay_until_they_are_sent_and_are_numbered_from_one() -> None:
    said = run_events()
    said.line("info", "one")
    first = said.pending()
    said.line("info", "two")

    assert first is not None
    said.sent(first)
    rest = said.pending()

    assert rest is not None
    assert [(line.number, line.message) for line in rest.lines] == [(2, "two")]
    said.sent(rest)
    assert said.pending() is None


def test_the_latest_progress_alone_is_sent_and_one_that_came_meanwhile_stays() -> None:
    said = run_events()
    said.progress(1, 4, None)
    said.progress(2, 4, "tables")
    first = said.pending()
    assert first is not None
    assert first.progress == Progress(done=2, total=4, text="tables")

    said.progress(3, 4, None)
    said.sent(first)

    rest = said.pending()
    assert rest is not None
    assert rest.progress == Progress(done=3, total=4)


def test_the_oldest_lines_go_when_there_is_no_room_and_are_counted() -> None:
    said = run_events(buffer_bytes=1024)
    for number in range(100):
        said.line("info", f"line {number}")

    pending = said.pending()

    assert pending is not None
    assert pending.lines[-1].message == "line 99"
    assert pending.dropped == 100 - len(pending.lines)
    assert len(encode(pending)) < 2048


def test_a_request_stays_below_what_the_server_takes() -> None:
    said = run_events()
    for _ in range(60):
        said.line("info", "\N{SNOWMAN}" * 10_000)
    sizes = []
    while (pending := said.pending()) is not None:
        sizes.append(len(encode(pending)))
        said.sent(pending)

    assert len(sizes) > 1
    assert max(sizes) <= MAX_EVENTS_BYTES


def test_a_request_with_long_progress_stays_below_what_the_server_takes() -> None:
    said = run_events()
    for _ in range(60):
        said.line("info", "a" * 1_000)
    said.progress(1, 2, "\N{GRINNING FACE}" * 10_000)

    pending = said.pending()

    assert pending is not None
    assert len(encode(pending)) <= MAX_EVENTS_BYTES


def test_what_json_cannot_say_is_replaced() -> None:
    said = run_events()
    said.line("info", "lone \ud800 surrogate")

    assert messages(said) == ["lone ? surrogate"]


@pytest.mark.parametrize("number", [math.inf, math.nan, -math.inf])
def test_progress_in_no_number_is_an_error_of_the_handler(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        run_events().progress(number, None, None)
    with pytest.raises(ValueError, match="finite"):
        run_events().progress(1, number, None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, ["info", "warning", "error"]),
        ({"level": "debug"}, ["debug", "info", "warning", "error"]),
        ({"level": "error"}, ["error"]),
        ({"level": "none"}, []),
        ({"enabled": False}, []),
    ],
)
def test_lines_are_sent_from_the_level_on_that_the_host_has_set(
    settings: dict[str, Any], said: list[str]
) -> None:
    one = run_events(**settings)
    for level in ("debug", "info", "warning", "error"):
        one.line(level, level)
    one.progress(1, None, None)

    assert messages(one) == said
    assert (one.pending() is None) == (settings == {"enabled": False})


def test_a_logger_tells_message_and_fields_without_secrets_or_tracebacks() -> None:
    said: list[tuple[str, str]] = []
    log = HandlerLog(structlog.get_logger(), lambda level, text: said.append((level, text)))

    log.bind(table="users").info("read %d rows", 7, token="hunter2", part=3)
    log.warning("see https://h/x?sig=abc")
    try:
        raise RuntimeError("inside")
    except RuntimeError:
        log.exception("it failed")

    assert said == [
        ("info", "read 7 rows table=users token=*** part=3"),
        ("warning", "see https://h/x?sig=***"),
        ("error", "it failed"),
    ]
