"""No secret in any log line: by name, by what it looks like, by its value."""

from __future__ import annotations

import base64
import io
import json
import logging
import sqlite3
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from arc_runtime.logs import redaction, setup
from arc_runtime.logs.redaction import KnownSecrets, keep_secret, mask_known, redact_text

TOKEN = "arc_agent_Zq8vTf3xk2LmN0pR"
PASSWORD = "pa/ss w\"ö'rd+1"
BASIC = base64.b64encode(f"svc:{PASSWORD}".encode()).decode()
OTHER = "0therS3cretNobodyKnows"
"""A secret whose value the process does not know: its name or its place has to tell."""


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process know no secrets but those of the test."""
    monkeypatch.setattr(redaction, "_KNOWN", KnownSecrets())
    keep_secret(TOKEN, PASSWORD, BASIC)


@pytest.fixture
def stream() -> io.StringIO:
    written = io.StringIO()
    setup.configure("json", "debug", written)
    return written


class Request:
    """What a handler may log whole."""

    def __str__(self) -> str:
        return f"<Request POST /x token={OTHER}>"


FIELDS: list[tuple[str, dict[str, Any]]] = [
    # params
    ("a token among params", {"params": {"user": "ada", "api_token": OTHER}}),
    ("a password deep among params", {"params": {"db": [{"password": OTHER}]}}),
    ("a known value under a harmless name", {"params": {"note": f"use {TOKEN} please"}}),
    ("a known value as a whole", {"value": TOKEN}),
    ("a known value as a key", {"params": {TOKEN: 1}}),
    ("a known value as the name of a field", {TOKEN: 1}),
    ("a list of secrets under their name", {"passwords": [OTHER, OTHER]}),
    ("params that were printed", {"text": str({"password": OTHER, "n": 1})}),
    ("params as JSON text", {"text": json.dumps({"a": 1, "client_secret": OTHER})}),
    ("a known value in JSON text", {"text": json.dumps({"note": PASSWORD})}),
    ("a known value as Python shows it", {"text": repr(PASSWORD)}),
    ("bytes", {"body": OTHER.encode()}),
    # headers
    ("a bearer token", {"headers": {"Authorization": f"Bearer {OTHER}"}}),
    ("a bearer token in text", {"text": f"sent Authorization: Bearer {OTHER}"}),
    ("a proxy's credentials", {"headers": {"Proxy-Authorization": f"Basic {BASIC}"}}),
    ("these as text, without their name", {"text": f"header value {BASIC}"}),
    ("an API key", {"headers": {"X-Api-Key": OTHER}}),
    ("a cookie", {"headers": {"Set-Cookie": f"sid={OTHER}"}}),
    ("a security token", {"headers": [("x", 1), {"X-Amz-Security-Token": OTHER}]}),
    # URLs
    ("a user and password", {"url": f"https://svc:{OTHER}@proxy.corp:3128/"}),
    ("a signature in a query", {"url": f"https://b.corp/x?X-Amz-Signature={OTHER}&a=1"}),
    ("a response token", {"url": f"https://a.corp/v1/r?response_token={OTHER}"}),
    ("a URL in text", {"text": f"GET https://a.corp/?sig={OTHER} gave 403"}),
    ("a known value in a path", {"url": f"https://a.corp/hook/{TOKEN}/x"}),
    ("a known value, escaped", {"text": f"proxy http://svc:{quote(PASSWORD, safe='')} failed"}),
    ("a connection string", {"dsn": f"host=db user=ada password={OTHER} port=5432"}),
    ("a connection string with quotes", {"dsn": f"host=db password='{OTHER} x' port=5432"}),
    ("a DSN that is a URL", {"dsn": f"postgres://ada:{OTHER}@db/x"}),
    # other things
    ("an object that shows it", {"request": Request()}),
    ("an exception as a field", {"error": ValueError(f"bad token {TOKEN}")}),
    ("a long text with a value across its cut", {"text": "x" * 16_380 + TOKEN}),
]


def secrets_in(text: str) -> list[str]:
    """Return which secrets a line shows, as they are or as JSON writes them."""
    forms = (TOKEN, PASSWORD, BASIC, OTHER, quote(PASSWORD, safe=""), json.dumps(PASSWORD)[1:-1])
    return [form for form in forms if form in text] + [t for t in ("arc_agent_Zq",) if t in text]


@pytest.mark.parametrize("fields", [f for _, f in FIELDS], ids=[name for name, _ in FIELDS])
def test_a_log_line_shows_no_secret(stream: io.StringIO, fields: dict[str, Any]) -> None:
    structlog.get_logger().info("it.happened", **fields)

    line = stream.getvalue()
    assert secrets_in(line) == []
    assert secrets_in(str(json.loads(line))) == []


EXCEPTIONS: list[tuple[str, BaseException]] = [
    ("its text", ValueError(f"cannot use {TOKEN}")),
    ("its arguments", OSError(5, "failed", f"/run/{TOKEN}")),
    ("a mapping", KeyError({"password": OTHER})),
    ("a URL", RuntimeError(f"401 for https://u:{OTHER}@h/?token={OTHER}")),
    ("a database's", sqlite3.OperationalError(f"connect: password={OTHER} refused")),
    ("a header", RuntimeError(f"got {{'Authorization': 'Bearer {OTHER}'}}")),
]


@pytest.mark.parametrize("error", [e for _, e in EXCEPTIONS], ids=[name for name, _ in EXCEPTIONS])
def test_a_traceback_shows_no_secret(stream: io.StringIO, error: BaseException) -> None:
    try:
        try:
            raise error
        except BaseException as first:
            raise RuntimeError(f"with {PASSWORD}") from first
    except RuntimeError:
        structlog.get_logger().exception("it.broke")
        logging.getLogger("library").exception("it broke with %s", TOKEN)

    text = stream.getvalue()
    assert text.count("Traceback") == 4
    assert secrets_in(text) == []
    assert [line for each in text.splitlines() for line in secrets_in(str(json.loads(each)))] == []


@pytest.mark.parametrize(
    "text",
    [
        "token: Expected `str`, got `int`",
        "server.token_file=/etc/arc/token",
        "key=42 tokens used, primary_key=7",
        "the password is wrong",
        'rule "night" allows "backup": 3 an hour',
    ],
)
def test_what_is_no_secret_is_left_as_it_is(text: str) -> None:
    assert redact_text(text) == text


def test_short_values_are_not_looked_for_in_innocent_words() -> None:
    keep_secret("a", "at", "", None)

    assert mask_known("at a table") == "at a table"


def test_only_so_many_values_are_known_the_latest() -> None:
    secrets = KnownSecrets()
    for number in range(300):
        secrets.add(f"secret-{number:03}")

    assert secrets.mask("secret-000 secret-299") == "secret-000 ***"


def test_a_value_that_holds_another_is_masked_whole() -> None:
    secrets = KnownSecrets()
    secrets.add("abcdef")
    secrets.add("abcdef-and-more")

    assert secrets.mask("abcdef-and-more") == "***"
