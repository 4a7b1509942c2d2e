"""Handlers: how they are found, what they are given, what becomes of what they return."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import sys
import types
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import pytest

from arc_agent import CommandFailed, Context, handler
from arc_agent.config.declared_handlers import ExecSection
from arc_agent.config.handler_sections import HandlersSection
from arc_agent.handlers import loading
from arc_agent.handlers.declared.programs import exec_handler
from arc_agent.handlers.loading import GROUP, ImportFailed, load_handlers
from arc_agent.handlers.params import convert_params
from arc_agent.handlers.registry import Handler, HandlerError, Registry, handlers_of
from arc_agent.handlers.shapes import Misfit, write


class Struct(msgspec.Struct):
    count: int
    at: datetime | None = None


@dataclasses.dataclass
class Data:
    count: int


class Typed(TypedDict):
    count: int


def made(function: Any) -> Handler:
    """The handler that a function is."""
    (found,) = handlers_of(handler("x")(function), "test")
    return found


# Params


@pytest.mark.parametrize("kind", [Struct, Data, Typed, dict[str, int], dict])
def test_params_become_what_the_handler_asks_for(kind: Any) -> None:
    def take(params: Any) -> None: ...

    take.__annotations__["params"] = kind

    converted = convert_params(b'{"count": 3}', made(take))

    expected = {Struct: Struct(3), Data: Data(3)}.get(kind, {"count": 3})
    assert converted == expected


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"count": "3"}', "params.count: Expected `int`, got `str`"),
        (b"{}", "params.count: is required"),
        (b"[]", "params: Expected `object`, got `array`"),
        (b"nonsense", "params: not JSON"),
        (b'{"count": 1, "at": "yesterday"}', "params.at: Invalid RFC3339 encoded datetime"),
        (b"[" * 100_000, "params: not JSON"),
        (b"\xff\xfe", "params: not JSON"),
    ],
)
def test_wrong_params_name_the_field(raw: bytes, says: str) -> None:
    def take(params: Struct) -> None: ...

    with pytest.raises(CommandFailed) as failed:
        convert_params(raw, made(take))

    assert failed.value.code == "INVALID_PARAMS"
    assert failed.value.message == says


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": 1}', {"a": 1}),
        ('"é"'.encode(), "é"),
        ('"é"'.encode("latin-1"), "é"),
        (b"hello", b"hello"),
        (b"", b""),
        (b"\x00\x01", b"\x00\x01"),
        (b"9" * 5000, b"9" * 5000),  # more digits than Python turns into a number
    ],
)
def test_params_without_a_type_are_json_or_bytes(raw: bytes, value: Any) -> None:
    def take(params) -> None: ...

    assert convert_params(raw, made(take)) == value


def test_bytes_and_text_are_taken_as_they_come() -> None:
    def take_bytes(params: bytes) -> None: ...
    def take_text(params: str) -> None: ...

    text = made(take_text)

    assert convert_params(b'{"a":1}', made(take_bytes)) == b'{"a":1}'
    assert convert_params(b'"hello"', text) == "hello"
    assert convert_params(b"hello", text) == "hello"  # a 1.x sender does not quote


def test_no_params_at_all_are_an_empty_object_to_a_type() -> None:
    def take(params: dict[str, Any]) -> None: ...

    assert convert_params(b"", made(take)) == {}


# Results


def test_results_are_ascii_json() -> None:
    value = {"a": Struct(1), "b": ["é", None, 1.5], "c": datetime(2026, 1, 1)}

    assert write(value) == (
        b'{"a":{"count":1,"at":null},"b":["\\u00e9",null,1.5],"c":"2026-01-01T00:00:00"}'
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {(1, 2): 3}, "\ud800"])
def test_what_json_cannot_say_is_an_error(value: Any) -> None:
    with pytest.raises(Misfit):
        write(value)


# Signatures


def test_a_handler_takes_params_a_context_both_or_neither() -> None:
    def both(params: dict[str, Any], ctx: Context) -> None: ...
    def swapped(context: Context, params: dict[str, Any]) -> None: ...
    def only_params(anything: dict[str, Any]) -> None: ...
    def only_context(c: Context) -> None: ...
    def untyped(params, ctx) -> None: ...
    def nothing() -> None: ...

    found = [
        (each.params_name, each.context_name)
        for each in map(made, (both, swapped, only_params, only_context, untyped, nothing))
    ]

    assert found == [
        ("params", "ctx"),
        ("params", "context"),
        ("anything", None),
        (None, "c"),
        ("params", "ctx"),
        (None, None),
    ]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "def f(a, b): pass",
            "takes more than params and a Context: b, which no lifespan provides",
        ),
        ("def f(a, /): pass", "positional-only"),
        (
            "def f(a: 'Nowhere'): pass",
            "the parameter a: its annotation: name 'Nowhere' is not defined",
        ),
        (
            "def f(a: type(sys)): pass",
            r"x \(test\): the parameter a: module cannot be read from JSON",
        ),
        ("def f() -> type(sys): pass", r"x \(test\): the result: module cannot be read from JSON"),
        ("def f(a: list[type(sys)]): pass", "the parameter a: module cannot be read"),
        ("def f(a) -> 'Nowhere': pass", "the result: its annotation"),
    ],
)
def test_a_function_that_cannot_be_called_as_a_handler_is_refused(code: str, says: str) -> None:
    scope: dict[str, Any] = {"sys": sys}
    exec(code, scope)

    with pytest.raises(HandlerError, match=says):
        made(scope["f"])


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 257])
def test_a_name_that_no_command_can_have_is_refused(name: str) -> None:
    with pytest.raises(HandlerError):
        handler(name)


def test_a_handler_says_what_it_is_for() -> None:
    @handler("a", description="Given")
    def given() -> None:
        """Its docstring."""

    @handler("b")
    def written() -> None:
        """Its docstring.

        More of it.
        """

    assert [h.description for f in (given, written) for h in handlers_of(f, "test")] == [
        "Given",
        "Its docstring.",
    ]


# Finding


def test_the_same_function_may_be_found_twice_but_a_name_is_taken_once() -> None:
    def one() -> None: ...
    def other() -> None: ...

    registry = Registry()
    registry.add(made(one))
    registry.add(next(iter(handlers_of(one, "elsewhere"))))

    with pytest.raises(HandlerError, match=r"two handlers for 'x': test and test"):
        registry.add(made(other))


def test_modules_are_found_by_name_in_the_given_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "found_by_path.py").write_text(
        "from arc_agent import handler\n@handler('by.path')\ndef f(): pass\n"
    )

    registry = load_handlers(HandlersSection(modules=["found_by_path"], path=[tmp_path]))

    assert registry.get("by.path") is not None
    assert registry.get("arc.ping") is not None


class _EntryPoint:
    """What an installed package registers."""

    def __init__(self, name: str, found: Any) -> None:
        self.name, self.value, self._found = name, f"package:{name}", found

    def load(self) -> Any:
        if isinstance(self._found, BaseException):
            raise self._found
        return self._found


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[_EntryPoint]:
    """Packages with entry points: a good one and one that fails."""
    module = types.ModuleType("good")
    module.f = handler("good.one")(lambda: None)  # type: ignore[attr-defined]
    points = [_EntryPoint("broken", RuntimeError("boom")), _EntryPoint("good", module)]

    def entry_points(*, group: str) -> list[_EntryPoint]:
        assert group == GROUP
        return points

    monkeypatch.setattr(loading.metadata, "entry_points", entry_points)
    return points


def test_an_entry_point_that_fails_is_left_out_loudly(
    installed: list[_EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    import structlog

    with structlog.testing.capture_logs() as events:
        registry = load_handlers(HandlersSection())

    assert registry.get("good.one") is not None
    (event,) = events
    assert (event["event"], event["entry_point"]) == ("handlers.left_out", "broken")
    assert event["log_level"] == "error"


def test_an_entry_point_that_fails_stops_a_strict_agent(installed: list[_EntryPoint]) -> None:
    with pytest.raises(ImportFailed) as failed:
        load_handlers(HandlersSection(strict=True))

    assert "RuntimeError: boom" in failed.value.report


def test_entry_points_can_be_switched_off(installed: list[_EntryPoint]) -> None:
    registry = load_handlers(HandlersSection(entry_points=False, strict=True))

    assert registry.get("good.one") is None


def test_what_comes_with_the_agent_is_registered_as_an_entry_point_too() -> None:
    names = [point.value for point in importlib.metadata.entry_points(group=GROUP)]

    assert "arc_agent.handlers.builtin" in names


# Programs


@pytest.mark.parametrize(
    "section",
    [
        ExecSection(argv=["cat", "--file={params_file}"]),
        ExecSection(argv=["{params_file}"]),
        ExecSection(argv=[""]),
        ExecSection(argv=["echo", "a\0b"]),
        ExecSection(argv=["true"], error_codes={"three": "X"}),
        ExecSection(argv=["true"], error_codes={"0": "X"}),
        ExecSection(argv=["true"], error_codes={"3": ""}),
    ],
)
def test_a_program_that_cannot_be_right_is_refused(section: ExecSection) -> None:
    with pytest.raises(HandlerError, match=r"^handlers\.exec\.x\."):
        exec_handler("x", section)
