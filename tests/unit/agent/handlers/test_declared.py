"""Declared handlers: their params and where these stand, refused with the path of the key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arc_agent.config.declared_handlers import ExecSection, HttpSection, SqlSection
from arc_agent.config.handler_sections import HandlersSection
from arc_agent.handlers.context import CommandFailed
from arc_agent.handlers.declared.http import http_handler
from arc_agent.handlers.declared.placeholders import declare
from arc_agent.handlers.declared.programs import exec_handler
from arc_agent.handlers.declared.sql import sql_handler
from arc_agent.handlers.declared.statements import BadStatement, read_statement
from arc_agent.handlers.descriptions import advertised
from arc_agent.handlers.registry import HandlerError

WORD = {"type": "string", "maxLength": 20, "pattern": "^[a-z-]+$"}
COUNT = {"type": "integer", "minimum": 1, "maximum": 100}
DB = Path("/nowhere/app.db")


def arguments(argv: list[str], params: dict[str, Any], data: bytes) -> list[str]:
    """The argv that a declared program gets for some params."""
    from arc_agent.handlers.declared.argv import Argv

    declared = declare(params, "params")
    return Argv(ExecSection(argv=argv, params=params), declared, "x").filled(declared.read(data))


@pytest.mark.parametrize(
    ("argv", "params", "path"),
    [
        (["x", "--n={params.a}"], {"a": COUNT}, "argv[1]"),
        (["x", "{params.a}{params.a}"], {"a": COUNT}, "argv[1]"),
        (["x", "{params.b}"], {"a": COUNT}, "argv[1]"),
        (["x", "{params.a}"], None, "argv[1]"),
        (["{params.a}"], {"a": WORD}, "argv[0]"),
        (["x", "{params.a}"], {"a": COUNT, "b": COUNT}, "params.b"),
        (["x", "{params.a}"], {"a": {}}, "params.a.type"),
        (["x", "{params.a}"], {"a": {"type": ["string", "null"], **{"enum": None}}}, "params.a"),
        (["x", "{params.a}"], {"a": {"type": "string"}}, "params.a.maxLength"),
        (["x", "{params.a}"], {"a": {"type": "string", "maxLength": 9}}, "params.a.pattern"),
        (["x", "{params.a}"], {"a": {"type": "string", "pattern": "^a*$"}}, "params.a.maxLength"),
        (["x", "{params.a}"], {"a": {**WORD, "maxLength": 99_999}}, "params.a.maxLength"),
        (["x", "{params.a}"], {"a": {**WORD, "pattern": "[a-z]+"}}, "params.a.pattern"),
        (["x", "{params.a}"], {"a": {**WORD, "pattern": "^[a-z]+"}}, "params.a.pattern"),
        (["x", "{params.a}"], {"a": {**WORD, "pattern": "^[a-z]+\\$"}}, "params.a.pattern"),
        (["x", "{params.a}"], {"a": {**WORD, "pattern": "^(a+)+$"}}, "params.a.pattern"),
        (["x", "{params.a}"], {"a": {"type": "integer"}}, "params.a"),
        (["x", "{params.a}"], {"a": {"type": "integer", "minimum": 1}}, "params.a"),
        (["x", "{params.a}"], {"a": {**COUNT, "minimum": -5}}, "params.a.minimum"),
        (["x", "-n", "{params.a}"], {"a": {**COUNT, "minimum": -5}}, "params.a.minimum"),
        (["x", "{params.a}", "--"], {"a": {**COUNT, "minimum": -5}}, "params.a.minimum"),
        (
            ["x", "{params.a}"],
            {"a": {"type": "number", "minimum": -0.5, "maximum": 1}},
            "params.a.minimum",
        ),
        (["x", "{params.a}"], {"a": {"type": "object"}}, "params.a"),
        (["x", "{params.a}"], {"a": {"type": "array", "maxItems": 2, "items": COUNT}}, "params.a"),
        (["x", "{params.a}"], {"a": {"type": ["integer", "boolean"], **COUNT}}, None),
        (["x", "{params.a}"], {"a": {**COUNT, "default": 0}}, "params.a.default"),
        (["x", "{params.a}"], {"a": {**WORD, "default": "-x"}}, "params.a.default"),
        (["x", "{params.a}"], {"a": {**COUNT, "exclusiveMinimum": 0}}, "params.a.exclusiveMinimum"),
        (["x", "{params.a}"], {"a": "string"}, "params.a"),
        (["x", "{params.a}"], {"a": {"enum": ["x", None]}}, "params.a.type"),
        (["x", "{params.a}"], {"a": {"enum": ["x\0"]}}, "params.a.enum"),
        (["x", "{params.1a}"], {"1a": COUNT}, "params.1a"),
        (["sh", "-c", "{params.a}"], {"a": WORD}, "argv[2]"),
        (["/bin/bash", "-ec", "{params.a}"], {"a": WORD}, "argv[2]"),
        (["python3.11", "-c", "{params.a}"], {"a": WORD}, "argv[2]"),
        (["env", "-S", "{params.a}"], {"a": WORD}, "argv[2]"),
        (["su", "app", "-c", "{params.a}"], {"a": WORD}, "argv[3]"),
    ],
)
def test_a_program_whose_arguments_are_not_bounded_is_refused_with_the_path(
    argv: list[str], params: dict[str, Any] | None, path: str | None
) -> None:
    if path is None:  # `type` beside COUNT's own: a plain integer
        exec_handler("x", ExecSection(argv=argv, params=params))
        return
    with pytest.raises(HandlerError) as refused:
        exec_handler("x", ExecSection(argv=argv, params=params))

    assert str(refused.value).startswith(f"handlers.exec.x.{path}")


def test_params_stand_in_no_variable() -> None:
    section = ExecSection(argv=["x"], env={"A": "{params.a}"}, params={"a": COUNT})

    with pytest.raises(HandlerError, match=r"^handlers\.exec\.x\.env\.A: "):
        exec_handler("x", section)


@pytest.mark.parametrize(
    ("argv", "params", "data", "made"),
    [
        (["x", "{params.a}"], {"a": WORD}, b'{"a":"ab-c"}', ["x", "ab-c"]),
        (["x", "{params.a}"], {"a": COUNT}, b'{"a":7.0}', ["x", "7"]),
        (["x", "{params.a}"], {"a": {**COUNT, "default": 5}}, b"", ["x", "5"]),
        (["x", "{params.a}"], {"a": {**COUNT, "default": 5}}, b"null", ["x", "5"]),
        (["x", "{params.a}"], {"a": {"type": "boolean"}}, b'{"a":true}', ["x", "true"]),
        (["x", "{params.a}"], {"a": {"enum": ["-l", "-s"]}}, b'{"a":"-l"}', ["x", "-l"]),
        (["x", "--", "{params.a}"], {"a": WORD}, b'{"a":"-rf"}', ["x", "--", "-rf"]),
        (
            ["x", "{params.a}"],
            {"a": {**WORD, "pattern": "^-?[a-z]+$"}},
            b'{"a":"-rf"}',
            ["x", "-rf"],
        ),
        (["sh", "-c", "{params.a}"], {"a": {"enum": ["df", "id"]}}, b'{"a":"id"}', None),
        (
            ["x", "--", "{params.n}"],
            {"n": {"type": "number", "minimum": -1, "maximum": 1}},
            b'{"n":-0.5}',
            ["x", "--", "-0.5"],
        ),
        (["x", "{params.n}"], {"n": {"enum": [-1, 0, 1]}}, b'{"n":-1}', ["x", "-1"]),
        (["x", "{params.n}"], {"n": {**COUNT, "minimum": 0}}, b'{"n":-0.0}', ["x", "0"]),
    ],
)
def test_arguments_are_made_of_params(
    argv: list[str], params: dict[str, Any], data: bytes, made: list[str] | None
) -> None:
    assert arguments(argv, params, data) == (made or ["sh", "-c", "id"])


@pytest.mark.parametrize(
    ("params", "data", "message"),
    [
        ({"a": WORD}, b'{"a":"-rf"}', "params.a: begins with a hyphen"),
        ({"a": {**WORD, "pattern": "^-|x$"}}, b'{"a":"-rf /x"}', "params.a: does not match ^-|x$"),
        ({"a": WORD}, b'{"a":"a;b"}', "params.a: does not match ^[a-z-]+$"),
        ({"a": WORD}, b'{"a":"ab\\n"}', "params.a: does not match ^[a-z-]+$"),
        ({"a": {**WORD, "pattern": "^[^;]*$"}}, b'{"a":"a\\u0000b"}', "params.a: does not match"),
        ({"a": WORD}, b"{}", "params.a: is missing"),
        ({"a": WORD}, b'{"a":"x","b":1}', "params: has a member that is not allowed"),
        ({"a": WORD}, b'{"a":"x","a":"y"}', "the params have the same name twice"),
        ({"a": WORD}, b'["x"]', "params: is not of type object"),
        ({"a": WORD}, b"x", "the params are not JSON"),
        ({"a": COUNT}, b'{"a":101}', "params.a: is above 100"),
        ({"a": COUNT}, b'{"a":"1"}', "params.a: is not of type integer"),
        ({"a": COUNT}, b'{"a":true}', "params.a: is not of type integer"),
        ({"a": {"enum": ["x"]}}, b'{"a":"y"}', "params.a: is none of the allowed values"),
    ],
)
def test_params_that_do_not_fit_are_refused_with_their_path(
    params: dict[str, Any], data: bytes, message: str
) -> None:
    with pytest.raises(CommandFailed) as refused:
        arguments(["x", "{params.a}"], params, data)

    assert refused.value.code == "INVALID_PARAMS"
    assert refused.value.message.startswith(message)


def test_declared_params_are_advertised() -> None:
    section = ExecSection(argv=["x", "{params.a}"], params={"a": {**COUNT, "default": 3}})
    (info,) = advertised([exec_handler("x", section)], HandlersSection())

    assert info.params_schema == {
        "type": "object",
        "properties": {"a": {**COUNT, "default": 3}},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("section", "path"),
    [
        (HttpSection(url="ftp://x"), "url"),
        (HttpSection(url="http://"), "url"),
        (HttpSection(url="http://a:b@x"), "url"),
        (HttpSection(url="http://x/?a=1"), "url"),
        (HttpSection(url="http://{params.a}/"), "url"),
        (HttpSection(url="http://x/../y"), "url"),
        (HttpSection(url="http://169.254.169.254"), "url"),
        (HttpSection(url="http://metadata.google.internal"), "url"),
        (HttpSection(url="http://x", path="y"), "path"),
        (HttpSection(url="http://x", path="/a?b=1"), "path"),
        (HttpSection(url="http://x", path="/a/../b"), "path"),
        (HttpSection(url="http://x", path="/a{params.a}", params={"a": WORD}), "path"),
        (HttpSection(url="http://x", path="/{params.b}"), "path"),
        (HttpSection(url="http://x", path="/{a}"), "path"),
        (HttpSection(url="http://x", path="/{params.a}", params={"a": {"type": "string"}}), "par"),
        (HttpSection(url="http://x", params={"a": WORD}), "params.a"),
        (HttpSection(url="http://x", query={"q": "x{params.a}"}, params={"a": WORD}), "query.q"),
        (HttpSection(url="http://x", json={"a": 1}), "json"),
        (HttpSection(url="http://x", method="POST", json={"a": ["{params.b}"]}), "json.a[0]"),
        (HttpSection(url="http://x", headers={"A b": "x"}), "headers.A b"),
        (HttpSection(url="http://x", headers={"Host": "x"}), "headers.Host"),
        (HttpSection(url="http://x", headers={"X": "a\r\nB: c"}), "headers.X"),
        (HttpSection(url="http://x", headers={"X": "{params.a}"}), "headers.X"),
        (HttpSection(url="http://x", headers={"X": "1"}, header_files={"x": DB}), "header_files.x"),
    ],
)
def test_a_request_that_is_not_fixed_is_refused_with_the_path(
    section: HttpSection, path: str
) -> None:
    with pytest.raises(HandlerError) as refused:
        http_handler("x", section)

    assert str(refused.value).startswith(f"handlers.http.x.{path}")


@pytest.mark.parametrize(
    ("section", "path"),
    [
        (SqlSection(statement="SELECT 1"), ": must name one database"),
        (SqlSection(statement="SELECT 1", sqlite=DB, dsn_file=DB), ": must name one database"),
        (SqlSection(statement="SELECT 1; DROP TABLE x", sqlite=DB), ".statement"),
        (SqlSection(statement="SELECT ?", sqlite=DB), ".statement"),
        (SqlSection(statement="SELECT :a", sqlite=DB), ".statement"),
        (SqlSection(statement="SELECT 1", sqlite=DB, params={"a": COUNT}), ".params.a"),
        (SqlSection(statement="SELECT :a", sqlite=DB, params={"a": {"type": "string"}}), ".params"),
        (
            SqlSection(
                statement="SELECT :a",
                sqlite=DB,
                params={"a": {"type": "array", "maxItems": 2, "items": COUNT}},
            ),
            ".params.a.type",
        ),
    ],
)
def test_a_statement_that_is_not_one_is_refused_with_the_path(
    section: SqlSection, path: str
) -> None:
    with pytest.raises(HandlerError) as refused:
        sql_handler("x", section)

    assert str(refused.value).startswith(f"handlers.sql.x{path}")


def test_postgres_without_its_library_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("arc_agent.handlers.declared.sql.find_spec", lambda name: None)

    with pytest.raises(HandlerError, match=r"handlers\.sql\.x\.dsn_file: .*\[postgres\]"):
        sql_handler("x", SqlSection(statement="SELECT 1", dsn_file=DB))


def test_what_only_reads_may_run_twice_and_the_rest_says_so() -> None:
    read = SqlSection(statement="SELECT 1", sqlite=DB)
    write = SqlSection(statement="SELECT 1", sqlite=DB, write=True)
    said = SqlSection(statement="SELECT 1", sqlite=DB, write=True, idempotent=True)

    assert http_handler("x", HttpSection(url="http://x")).idempotent
    assert not http_handler("x", HttpSection(url="http://x", method="POST")).idempotent
    assert [sql_handler("x", each).idempotent for each in (read, write, said)] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("text", "numbered", "names"),
    [
        ("SELECT :a, :b, :a", "SELECT $1, $2, $1", ("a", "b")),
        ("SELECT ':a', \":b\", :c::text -- :d\n/* :e */;", None, ("c",)),
        ("SELECT $$ :a $$, $t$ :b $$ $t$, :c", "SELECT $$ :a $$, $t$ :b $$ $t$, $1", ("c",)),
        ("SELECT E'it\\'s :a', :b", "SELECT E'it\\'s :a', $1", ("b",)),
        ("SELECT 'it''s :a', :b", "SELECT 'it''s :a', $1", ("b",)),
    ],
)
def test_parameters_are_found_where_they_are_and_nowhere_else(
    text: str, numbered: str | None, names: tuple[str, ...]
) -> None:
    statement = read_statement(text, is_postgres=True)

    assert statement.names == names
    assert numbered is None or statement.numbered == numbered


@pytest.mark.parametrize("text", ["", " ; ", "-- x", "SELECT 'a", "SELECT 1;SELECT 2", "SELECT $1"])
def test_what_is_not_one_statement_is_refused(text: str) -> None:
    with pytest.raises(BadStatement):
        read_statement(text, is_postgres=True)


def test_an_agent_without_sql_handlers_does_not_load_asyncpg() -> None:
    program = (
        "import sys, arc_agent.agent\n"
        "from arc_agent.config.declared_handlers import ExecSection\n"
        "from arc_agent.config.handler_sections import HandlersSection\n"
        "from arc_agent.handlers.loading import check_host, load_handlers\n"
        "settings = HandlersSection(exec={'x': ExecSection(argv=['true'])})\n"
        "load_handlers(settings), check_host(settings)\n"
        "assert 'asyncpg' not in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
