"""Events to the journal, against a socket that is none but speaks its protocol."""

from __future__ import annotations

import io
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from arc_runtime.logs import journald, setup
from arc_runtime.logs.redaction import redact_fields


class Journal:
    """A datagram socket where the journal's is, and what came in."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def received(self) -> list[dict[str, str]]:
        """All events so far, taken apart as journald does."""
        events: list[dict[str, str]] = []
        while True:
            try:
                events.append(read(self.socket.recv(1 << 20)))
            except BlockingIOError:
                return events


def read(data: bytes) -> dict[str, str]:
    """The fields of a datagram."""
    found: dict[str, str] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, has_value, value = line.partition(b"=")
        if not has_value:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        found[name.decode()] = value.decode()
        data = rest
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="arc-") as name:
        yield Path(name)


@pytest.fixture
def journal(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    path = place / "journal"
    opened = Journal(path)
    monkeypatch.setattr(journald, "SOCKET", str(path))
    monkeypatch.setattr(journald.JournalOutput.__init__, "__defaults__", (str(path),))
    monkeypatch.setattr(journald.leads_to_journal, "__defaults__", (os.environ, str(path)))
    yield opened
    opened.socket.close()


@pytest.fixture
def stderr(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A stream that systemd says leads to the journal."""
    with (place / "stderr").open("w+") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        yield stream


def test_an_event_is_fields_of_the_journal(journal: Journal, stderr: TextIO) -> None:
    output = setup.configure("auto", stream=stderr)

    structlog.get_logger().warning("lease.lost", command_id="cmd_1", attempt=2, tags=["a"])
    output.close()

    (event,) = journal.received()
    assert event.pop("SYSLOG_IDENTIFIER")
    assert event == {
        "MESSAGE": "lease.lost  command_id=cmd_1 attempt=2 tags=['a']",
        "PRIORITY": "4",
        "ARC_EVENT": "lease.lost",
        "ARC_COMMAND_ID": "cmd_1",
        "ARC_ATTEMPT": "2",
        "ARC_TAGS": '["a"]',
    }
    stderr.seek(0)
    assert stderr.read() == ""


def test_a_traceback_comes_whole_and_without_secrets(journal: Journal, stderr: TextIO) -> None:
    output = setup.configure("auto", stream=stderr)
    try:
        raise ValueError("https://u:secret@h/")
    except ValueError:
        structlog.get_logger().exception("it.broke")
    output.close()

    (event,) = journal.received()
    assert event["PRIORITY"] == "3"
    assert event["MESSAGE"].startswith("it.broke\n    Traceback")
    assert event["ARC_EXCEPTION"].endswith("ValueError: https://***@h/")


def test_a_line_break_in_a_value_makes_no_other_field(journal: Journal, stderr: TextIO) -> None:
    output = setup.configure("auto", stream=stderr)

    structlog.get_logger().info("x", said="a\nPRIORITY=0\nMESSAGE=forged", **{"na me=é": "v"})
    output.close()

    (event,) = journal.received()
    assert event["PRIORITY"] == "6"
    assert event["ARC_SAID"] == "a\nPRIORITY=0\nMESSAGE=forged"
    assert event["ARC_NA_ME_"] == "v"


def test_an_event_that_is_too_large_comes_cut(journal: Journal, stderr: TextIO) -> None:
    output = setup.configure("auto", stream=stderr)

    structlog.get_logger().info("x", **{f"field_{n}": "y" * 16_000 for n in range(40)})
    output.close()

    (event,) = journal.received()
    assert event["ARC_FIELD_39"] == "y" * 1024


def test_what_the_journal_does_not_take_is_counted_and_told(
    journal: Journal, stderr: TextIO
) -> None:
    output = setup.configure("auto", stream=stderr)
    log = structlog.get_logger()
    count = 0
    while not getattr(output, "_lost", 0):
        log.info("many", number=count)
        count += 1
    log.info("many", number=count)

    first = journal.received()
    log.info("after")
    told, after = journal.received()
    output.close()

    assert told["ARC_EVENT"] == "log.dropped"
    assert int(told["ARC_LINES"]) == count + 1 - len(first)
    assert after["ARC_EVENT"] == "after"


def test_a_journal_that_was_restarted_is_found_again(
    journal: Journal, stderr: TextIO, place: Path
) -> None:
    output = setup.configure("auto", stream=stderr)
    journal.socket.close()
    (place / "journal").unlink()
    again = Journal(place / "journal")

    structlog.get_logger().info("x")
    output.close()

    assert [event["ARC_EVENT"] for event in again.received()] == ["x"]
    again.socket.close()


def test_a_reload_keeps_the_output_and_another_format_changes_it(
    journal: Journal, stderr: TextIO
) -> None:
    first = setup.configure("auto", stream=stderr)
    assert setup.configure("auto", "debug", stream=stderr) is first
    second = setup.configure("json", stream=stderr)
    structlog.get_logger().info("x")
    second.close()
    first.close()

    assert journal.received() == []
    stderr.seek(0)
    assert '"event": "x"' in stderr.read()


@pytest.mark.parametrize("value", ["", "1:2", "x:y", "1", ":"])
def test_elsewhere_lines_are_json(
    journal: Journal, stderr: TextIO, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", value)
    output = setup.configure("auto", stream=stderr)
    structlog.get_logger().info("x")
    output.close()

    assert journal.received() == []
    stderr.seek(0)
    assert '"event": "x"' in stderr.read()


def test_a_stream_without_a_descriptor_is_not_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")

    assert not journald.leads_to_journal(io.StringIO())
    assert not journald.leads_to_journal(None)


def test_values_that_are_no_text_go_as_json() -> None:
    event: dict[str, Any] = redact_fields({"level": "info", "event": "x", "n": None, "m": {"a": 1}})

    assert journald.fields(event, "x")["ARC_N"] == "null"
    assert journald.fields(event, "x")["ARC_M"] == '{"a": 1}'
