"""URLs, tokens and what an answer means, without a network."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from arc_client.errors import (
    AccessDenied,
    ConfigurationError,
    TokenRefused,
    UnexpectedAnswer,
    error_of,
)
from arc_client.wire.connection import SenderConnection, base_url, proxy_of, retry_after
from arc_protocol.errors import (
    ArcError,
    CommandNotFound,
    IdempotencyKeyReused,
    NotFound,
    RateLimited,
    Unavailable,
)

NOW = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://h", "https://h/v1"),
        ("https://h/", "https://h/v1"),
        ("https://h:8443/v1", "https://h:8443/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/edge//arc/", "https://h/edge/arc/v1"),
        ("  http://[::1]:80 ", "http://[::1]:80/v1"),
    ],
)
def test_the_server_url_may_end_in_v1_or_not(given: str, used: str) -> None:
    assert base_url(given) == used


@pytest.mark.parametrize(
    "given",
    [
        "",
        "h:80",
        "ftp://h",
        "http://",
        "https://h:x",
        "https://h:0",
        "http://u:p@h",
        "https://h/?a=b",
    ],
)
def test_a_url_that_is_no_server_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        base_url(given)

    assert "u:p" not in refused.value.message


def test_ids_and_values_are_quoted_into_urls() -> None:
    connection = SenderConnection("https://h")

    url = connection.url("commands", "a/../b?c", query={"deploymentId": "x&y", "state": None})

    assert url == "https://h/v1/commands/a%2F..%2Fb%3Fc?deploymentId=x%26y"


@pytest.mark.parametrize("content", ["", "  \n", "two\nlines", "with space", "tab\there"])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)

    with pytest.raises(ConfigurationError) as refused:
        SenderConnection("https://h", token_file=file)

    assert str(file) in refused.value.message
    assert "lines" not in refused.value.message


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no-token: No such file"):
        SenderConnection("https://h", token_file=tmp_path / "no-token")


@pytest.mark.parametrize(("mode", "warnings"), [(0o600, 0), (0o644, 1)])
def test_a_token_file_that_every_user_may_read_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warnings: int
) -> None:
    file = tmp_path / "token"
    file.write_text("t")
    file.chmod(mode)

    SenderConnection("https://h", token_file=file)

    assert len(caplog.records) == warnings
    assert all(f"{file} is open to every user" in each.message for each in caplog.records)


def test_a_token_and_a_token_file_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        SenderConnection("https://h", token="t", token_file=tmp_path)


def test_a_file_of_certificates_that_holds_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")

    with pytest.raises(ConfigurationError, match=r"in .*ca\.pem: it holds no readable PEM$"):
        SenderConnection("https://h", ca_file=file)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("Mon, 23 Nov 2026 20:00:30 GMT", 30.0),
        ("Mon, 23 Nov 2026 19:00:30 GMT", 0.0),
        ("soon", None),
        ("-3", None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


def test_a_proxy_is_taken_from_the_environment_but_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")

    assert proxy_of("http://outside.example/x") == "http://proxy:3128"
    assert proxy_of("http://inside.example/x") is None
    assert proxy_of("http://127.0.0.1:80/x") is None
    assert proxy_of("http://localhost/x") is None


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (404, b'{"code":"COMMAND_NOT_FOUND","message":"no c1"}', CommandNotFound, "no c1"),
        (409, b'{"code":"IDEMPOTENCY_KEY_REUSED","message":"m"}', IdempotencyKeyReused, "m"),
        (401, b'{"code":"UNAUTHORIZED","message":"m","retryable":false}', TokenRefused, "m"),
        (403, b'{"code":"FORBIDDEN","message":"m"}', AccessDenied, "m"),
        (503, b'{"code":"UNAVAILABLE","message":"m"}', Unavailable, "m"),
        (429, b'{"code":"SLOW_DOWN","message":"m"}', RateLimited, "m"),
        (418, b'{"code":"TEAPOT","message":"m"}', UnexpectedAnswer, "m"),
        (
            404,
            b"<html>\n no such\tpage",
            NotFound,
            "HTTP 404 from http://h/x: <html> no such page",
        ),
        (502, b"\xff\xfe", UnexpectedAnswer, "HTTP 502 from http://h/x: \ufffd\ufffd"),
        (500, b"", UnexpectedAnswer, "HTTP 500 from http://h/x"),
        (400, b'{"code":1}', UnexpectedAnswer, 'HTTP 400 from http://h/x: {"code":1}'),
    ],
)
def test_an_answer_is_an_error_by_its_code_or_else_by_its_status(
    status: int, body: bytes, kind: type[ArcError], message: str
) -> None:
    error = error_of(status, body, url="http://h/x")

    assert type(error) is kind
    assert error.message == message
    assert error.context["status"] == status
    assert error.context["is_ours"] == (b'"message"' in body)


def test_a_long_error_page_is_cut_and_the_urls_query_is_not_shown() -> None:
    error = error_of(502, b"x" * 100_000, url="http://h/x?token=secret")

    assert "secret" not in error.message
    assert len(error.message) < 300
