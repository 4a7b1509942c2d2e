import fcntl
import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from arc_runtime.logs import setup
from arc_runtime.logs.redaction import redact_fields, redact_text


@pytest.fixture(autouse=True)
def _empty_logging() -> Iterator[None]:
    """Begin without handlers and leave no context behind."""
    logging.getLogger().handlers[:] = []
    yield
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json_with_time_level_and_fields(stream: io.StringIO) -> None:
    setup.configure("json", stream=stream)

    structlog.get_logger().info("lease.acquired", command_id="cmd_1", attempt=2, age=1.5)

    line = stream.getvalue()
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    event = json.loads(line)
    assert list(event) == ["timestamp", "level", "event", "command_id", "attempt", "age"]
    assert event["timestamp"].endswith("Z")
    del event["timestamp"]
    assert event == {
        "level": "info",
        "event": "lease.acquired",
        "command_id": "cmd_1",
        "attempt": 2,
        "age": 1.5,
    }


def test_auto_is_json_where_no_terminal_is(stream: io.StringIO) -> None:
    setup.configure("auto", stream=stream)

    structlog.get_logger().warning("a.b")

    assert events(stream)[0]["event"] == "a.b"


def test_auto_is_coloured_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal, open(ours, "rb", buffering=0) as screen:
        output = setup.configure("auto", stream=terminal)
        structlog.get_logger().error("a.b", name="two words")
        shown = screen.read(4096).decode()
        output.close()

    assert "\x1b[31merror" in shown
    assert '"two words"' in shown


def test_no_colour_is_used_when_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal, open(ours, "rb", buffering=0) as screen:
        output = setup.configure("auto", stream=terminal)
        structlog.get_logger().error("a.b")
        shown = screen.read(4096).decode()
        output.close()

    assert "\x1b" not in shown
    assert "error    a.b" in shown


def test_text_shows_fields_and_the_exception_on_lines_of_its_own(stream: io.StringIO) -> None:
    setup.configure("text", stream=stream)

    try:
        raise ValueError("no good")
    except ValueError:
        structlog.get_logger().exception("run.failed", command_id="c", note="", said="a b")

    first, *rest = stream.getvalue().splitlines()
    assert first[12:] == ' error    run.failed  command_id=c note="" said="a b"'
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    ValueError: no good"


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("evil", ["\x1b[2J", "\x9b2J", "a\nb", "a\rb", "\u202eb", "\ud800", "\x00"])
def test_no_character_of_a_value_acts_on_a_terminal(
    stream: io.StringIO, form: Any, evil: str
) -> None:
    setup.configure(form, stream=stream)

    structlog.get_logger().info(f"event {evil}", value=evil, **{f"name{evil}": 1})

    assert stream.getvalue().endswith("\n")
    assert stream.getvalue()[:-1].isprintable()


def test_levels_below_the_threshold_are_not_logged(stream: io.StringIO) -> None:
    setup.configure("json", "warning", stream)

    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet too")
    structlog.get_logger().warning("loud")

    assert [event["event"] for event in events(stream)] == ["loud"]


def test_the_level_can_be_changed_later_for_loggers_that_exist(stream: io.StringIO) -> None:
    log = structlog.get_logger()
    setup.configure("json", "warning", stream)
    log.info("quiet")

    setup.configure("json", "debug", stream)
    log.debug("loud")

    assert [event["event"] for event in events(stream)] == ["loud"]


def test_a_logger_bound_before_a_reload_still_writes_after_it() -> None:
    read, write = os.pipe()
    with open(write, "w") as stream, open(read, "rb", buffering=0) as lines:
        setup.configure("json", stream=stream)
        bound = structlog.get_logger().bind(command_id="c")
        output = setup.configure("text", stream=stream)
        bound.info("still.here")
        shown = lines.read(4096)
        output.close()

    assert b"still.here" in shown


def test_unknown_formats_and_levels_are_refused(stream: io.StringIO) -> None:
    with pytest.raises(ValueError, match="unknown log format 'xml'; there are auto, json, text"):
        setup.configure("xml", stream=stream)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown log level 'loud'; there are debug, info"):
        setup.configure("json", "loud", stream)


def test_what_libraries_log_comes_out_the_same_way(stream: io.StringIO) -> None:
    setup.configure("json", stream=stream)

    logging.getLogger("aiohttp.access").info("GET %s %d", "/x?sig=abc", 200)
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    logging.getLogger("odd").log(25, "between")

    access, failure, between = events(stream)
    assert access["event"] == "GET /x?sig=*** 200"
    assert access["logger"] == "aiohttp.access"
    assert failure["level"] == "error"
    assert failure["exception"].endswith("OSError: gone")
    assert (between["event"], between["level"]) == ("between", "info")


def test_a_librarys_broken_log_call_is_logged_as_such(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would raise
    setup.configure("json", stream=stream)

    logging.getLogger("broken").warning("%d pieces", "text")

    assert events(stream)[0]["event"] == "a message that cannot be formatted: '%d pieces'"


def test_warnings_are_logged_not_printed(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        setup.configure("json", stream=stream)

        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)

    assert "DeprecationWarning: old" in events(stream)[0]["event"]
    assert capsys.readouterr().err == ""


def test_context_that_was_bound_is_in_every_event(stream: io.StringIO) -> None:
    setup.configure("json", stream=stream)

    with structlog.contextvars.bound_contextvars(command_id="c"):
        structlog.get_logger().info("inside")
    structlog.get_logger().info("outside")

    inside, outside = events(stream)
    assert inside["command_id"] == "c"
    assert "command_id" not in outside


# Secrets


@pytest.mark.parametrize(
    "name",
    [
        *("token", "response_token", "responseToken", "tokens", "Authorization", "password"),
        *("db-password", "passwd", "client_secret", "secrets", "signature", "X-Amz-Signature"),
        *("cookie", "Set-Cookie", "api_key", "apiKey", "private_key", "signing.key", "TOKEN"),
    ],
)
def test_a_field_with_a_secrets_name_is_not_shown(name: str) -> None:
    assert redact_fields({name: "s3cret", "headers": {name: ["s3cret"]}}) == {
        name: "***",
        "headers": {name: "***"},
    }


@pytest.mark.parametrize(
    "name",
    [
        *("token_id", "token_file", "command", "idempotency_key", "key", "keys", "author"),
        *("secretary", "signature_is_valid", "password_file", "monkey", "turkey"),
    ],
)
def test_a_field_with_another_name_is_shown(name: str) -> None:
    assert redact_fields({name: "shown"}) == {name: "shown"}


def test_whether_there_is_a_secret_may_be_shown() -> None:
    assert redact_fields({"token": None, "password": False}) == {"token": None, "password": False}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/p?response_token=abc&expires=17", "https://h/p?response_token=***&expires=***"),
        ("/v1/blobs/x?sig=a%2Fb+c=", "/v1/blobs/x?sig=***"),
        ("PUT https://h/a?X-Amz-Signature=ff (403)", "PUT https://h/a?X-Amz-Signature=*** (403)"),
        (
            "url='http://h/?a=1', next='http://h/?b=2'",
            "url='http://h/?a=***', next='http://h/?b=***'",
        ),
        ("postgres://arc:pw@db/arc", "postgres://***@db/arc"),
        ("https://user@host/", "https://***@host/"),
        ("Authorization: Bearer arc_abc123", "Authorization: Bearer ***"),
        ("bearer eyJhbGciOiJub25lIn0.e30.", "bearer ***"),
        ("Basic dXNlcjpwYXNz==", "Basic ***"),
        ("a bearer token is needed", "a bearer token is needed"),
        ("basic authentication", "basic authentication"),
        ("x=1 y=2", "x=1 y=2"),
        ("what? a=b", "what? a=b"),
        ("mail root@host", "mail root@host"),
    ],
)
def test_secrets_within_text_are_not_shown(text: str, shown: str) -> None:
    assert redact_text(text) == shown


def test_a_secret_in_an_exceptions_text_is_not_shown(stream: io.StringIO) -> None:
    setup.configure("json", stream=stream)

    try:
        raise OSError("cannot GET https://h/x?sig=s3cret with Bearer abcd1234")
    except OSError:
        structlog.get_logger().exception("get.failed")

    assert "s3cret" not in stream.getvalue()
    assert "abcd1234" not in stream.getvalue()


def test_a_long_hostile_text_is_cleaned_in_a_bounded_time() -> None:
    started = time.process_time()

    for piece in ("?a=", "//", "@", "bearer ", "?", "=", "&a", "//a@", "basic aa ", "?a%"):
        assert len(redact_text(piece * 1_000_000)) < 100_000

    assert time.process_time() - started < 5


class Unspeakable:
    """Something that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_values_of_any_kind_are_logged_and_none_breaks_the_call(stream: io.StringIO) -> None:
    setup.configure("json", stream=stream)
    circle: dict[str, Any] = {}
    circle["self"] = circle

    structlog.get_logger().info(
        "odd",
        data=b"\x00\x01",
        circle=circle,
        number=float("nan"),
        huge=10**5000,
        unspeakable=Unspeakable(),
        many=list(range(10_000)),
        long="x" * 100_000,
        keys={1: "a", (2,): "b", None: "c"},
        set={1},
        error=ValueError("bad"),
    )

    (event,) = events(stream)
    assert event["data"] == "(2 bytes)"
    assert "bits" in event["huge"]
    assert event["unspeakable"] == "<Unspeakable>"
    assert len(event["many"]) == 100
    assert event["long"].endswith("… (83616 more characters)")
    assert event["keys"] == {"1": "a", "(2,)": "b", "None": "c"}
    assert event["number"] == "nan"
    assert event["error"] == "bad"


# No process reads


def test_a_reader_that_is_gone_stops_nothing() -> None:
    code = """
import os, sys, structlog
from arc_runtime.logs import setup
setup.configure("json")
read, write = os.pipe()
os.dup2(write, 2)
os.close(write)
setup.configure("json", stream=open(2, "w", closefd=False))
os.close(read)
for _ in range(100):
    structlog.get_logger().info("unheard")
print("alive")
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)

    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_a_closed_standard_error_stops_nothing_and_no_other_file_gets_the_lines() -> None:
    code = """
import os, structlog
from arc_runtime.logs import setup
setup.configure("json")
os.close(2)
other = os.open("/dev/null", os.O_RDWR)
assert other == 2
structlog.get_logger().info("through the duplicate")
print("alive")
"""
    program = "import structlog; from arc_runtime.logs import setup; setup.configure();"
    program += ' structlog.get_logger().info("x"); print("alive")'
    never_open = f"exec 2>&-; exec {sys.executable} -c '{program}'"

    closed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30
    )
    absent = subprocess.run(["sh", "-c", never_open], stdout=subprocess.PIPE, text=True, timeout=30)

    assert (closed.returncode, closed.stdout) == (0, "alive\n")
    assert json.loads(closed.stderr)["event"] == "through the duplicate"
    assert (absent.returncode, absent.stdout) == (0, "alive\n")


def test_a_reader_that_does_not_read_delays_little_and_is_told_what_it_missed() -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 65536)
    with open(write, "w") as stream, open(read, "rb", buffering=0) as lines:
        output = setup.configure("json", stream=stream)
        log = structlog.get_logger()
        for number in range(3000):  # ends: only the first line that does not fit waits
            log.info("a.line", number=number, filling="x" * 100)

        kept = b""
        while not kept.endswith(b"\n") or len(kept) < 60_000:
            kept += lines.read(65536)
        log.info("heard.again")
        rest = lines.read(65536)
        output.close()

    assert all(json.loads(line)["event"] == "a.line" for line in kept.splitlines())
    dropped, heard = map(json.loads, rest.splitlines())
    assert (dropped["event"], dropped["level"]) == ("log.dropped", "warning")
    assert dropped["lines"] == 3000 - len(kept.splitlines())
    assert heard["event"] == "heard.again"


def test_a_line_longer_than_the_pipe_arrives_whole_when_somebody_reads() -> None:
    read, write = os.pipe()
    chunks: list[bytes] = []

    def drain() -> None:
        with open(read, "rb", buffering=0) as lines:
            while chunk := lines.read(65536):
                chunks.append(chunk)

    reader = threading.Thread(target=drain)
    reader.start()
    with open(write, "w") as stream:
        output = setup.configure("json", stream=stream)
        structlog.get_logger().info("long", parts=["x" * 10_000] * 50)
        output.close()
    reader.join(timeout=10)

    assert len(json.loads(b"".join(chunks))["parts"]) == 50


def test_lines_of_several_threads_do_not_mix() -> None:
    read, write = os.pipe()
    chunks: list[bytes] = []

    def drain() -> None:
        with open(read, "rb", buffering=0) as lines:
            while chunk := lines.read(65536):
                chunks.append(chunk)

    with open(write, "w") as stream:
        output = setup.configure("json", stream=stream)
        log = structlog.get_logger()
        threads = [
            threading.Thread(target=lambda: [log.info("x", filling="y" * 6000) for _ in range(20)])
            for _ in range(4)
        ]
        reader = threading.Thread(target=drain)
        for thread in (reader, *threads):
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        output.close()
    reader.join(timeout=10)

    lines = b"".join(chunks).splitlines()
    assert len(lines) == 80
    assert all(len(json.loads(line)["filling"]) == 6000 for line in lines)
