"""Types of handlers: values from JSON and to it, what is wrong with them, and JSON Schema."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest

from arc_agent import handler
from arc_agent.config.handler_sections import HandlersSection
from arc_agent.handlers.descriptions import advertised
from arc_agent.handlers.registry import Handler, HandlerError, handlers_of
from arc_agent.handlers.shapes import UNTYPED, Misfit, check, is_raw, read, schema, write


class Item(msgspec.Struct):
    price: Annotated[int, msgspec.Meta(ge=0, description="In cents")]
    name: str = "?"


class Model(pydantic.BaseModel):
    price: int
    tags: list[str] = pydantic.Field(default_factory=list)
    inner: Model | None = None


class Part(TypedDict):
    price: int


@dataclasses.dataclass
class Order:
    items: list[Item]
    on: date | None = None
    sizes: dict[int, str] = dataclasses.field(default_factory=dict[int, str])


class Basket(msgspec.Struct):
    models: list[Model]
    by_name: dict[str, Model] = {}


class Colour(Enum):
    RED = "red"


def made(function: Any, **options: Any) -> Handler:
    """The handler that a function is."""
    (found,) = handlers_of(handler("x", **options)(function), "test")
    return found


@pytest.mark.parametrize(
    ("kind", "value", "becomes"),
    [
        (Order, {"items": [{"price": 1}], "sizes": {"7": "l"}}, Order([Item(1)], None, {7: "l"})),
        (Order, {"items": [], "on": "2026-11-24"}, Order([], date(2026, 11, 24))),
        (Part, {"price": 1}, {"price": 1}),
        (list[Part], [{"price": 1}], [{"price": 1}]),
        (Model, {"price": "1"}, Model(price=1)),
        (Basket, {"models": [{"price": 1}]}, Basket([Model(price=1)])),
        (list[Colour], ["red"], [Colour.RED]),
        (Literal["a", "b"], "a", "a"),
        (int | None, None, None),
        (dict[str, object], {"a": [1]}, {"a": [1]}),
    ],
)
def test_json_becomes_what_the_annotation_says(kind: Any, value: Any, becomes: Any) -> None:
    check(kind)

    assert read(value, kind) == becomes


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (Order, {"items": [{"price": 1}, {"price": "1"}]}, "params.items[1].price: Expected `int`"),
        (Order, {"items": [{"price": -1}]}, "params.items[0].price: Expected `int` >= 0"),
        (Order, {"items": [{}]}, "params.items[0].price: is required"),
        (list[Item], [{"price": None}], "params[0].price: Expected `int`, got `null`"),
        (Order, 3, "params: Expected `object`, got `int`"),
        (dict[str, int], {"a": "b"}, "params[...]: Expected `int`, got `str`"),
        (Model, {"price": "x"}, "params.price: Input should be a valid integer"),
        (Model, {"price": 1, "inner": {"price": []}}, "params.inner.price: Input should be"),
        (Model, {"tags": [1]}, "params.price: Field required (and 1 more)"),
        (Basket, {"models": [{"price": 1, "tags": ["", 2]}]}, "params.models[0].tags[1]:"),
        (list[Model], [{"price": {}}], "params[0].price: "),
        (Colour, "blue", "params: Invalid enum value 'blue'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_by_its_path(kind: Any, value: Any, says: str) -> None:
    with pytest.raises(Misfit) as wrong:
        read(value, kind)

    assert wrong.value.under("params").startswith(says)


@pytest.mark.parametrize("kind", [Path, complex, list[Path], Order | Item, "nothing", type])
def test_a_type_that_json_cannot_become_is_refused_before_anything_runs(kind: Any) -> None:
    with pytest.raises(TypeError):
        check(kind)


def test_a_struct_with_such_a_part_is_refused_too() -> None:
    Deep = msgspec.defstruct("Deep", [("inner", list[msgspec.defstruct("In", [("at", Path)])])])

    with pytest.raises(TypeError, match="Path cannot be read from JSON"):
        check(Deep)


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (Item, Item("free"), "result.price: Expected `int`, got `str`"),  # type: ignore[arg-type]
        (Order, Order([Item(1), Item(-1)]), "result.items[1].price: Expected `int` >= 0"),
        (list[int], ["a"], "result[0]: Expected `int`, got `str`"),
        (type(None), 3, "result: Expected `null`, got `int`"),
        (Model, {"price": 1}, "result: Expected `Model`, got `dict`"),
        (UNTYPED, {1j}, "result: a value of the type complex cannot be written as JSON"),
        (UNTYPED, {"a": float("nan")}, "result: Out of range float values are not JSON compliant"),
    ],
)
def test_a_result_that_is_not_what_was_promised_is_named(kind: Any, value: Any, says: str) -> None:
    with pytest.raises(Misfit) as wrong:
        write(value, kind)

    assert wrong.value.under("result").startswith(says)


@pytest.mark.parametrize(
    ("kind", "value", "sent"),
    [
        (Order, Order([Item(1)], date(2026, 11, 24), {7: "l"}),
         b'{"items":[{"price":1,"name":"?"}],"on":"2026-11-24","sizes":{"7":"l"}}'),
        (Model, Model(price=1), b'{"price":1,"tags":[],"inner":null}'),
        (Basket, Basket([Model(price=1)]),
         b'{"models":[{"price":1,"tags":[],"inner":null}],"by_name":{}}'),
        (float, 1, b"1"),
        (dict[str, object], {"a": [1]}, b'{"a":[1]}'),
        (UNTYPED, {"m": Model(price=1)}, b'{"m":{"price":1,"tags":[],"inner":null}}'),
    ],
)  # fmt: skip
def test_a_result_of_the_promised_type_is_sent(kind: Any, value: Any, sent: bytes) -> None:
    assert write(value, kind) == sent


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("\udcff", ""),
        ({"files": ["a", {"name": "\udcff"}]}, "files[1].name"),
        ({"\udcff": 1}, "\\udcff"),
    ],
)
def test_text_that_is_no_unicode_is_named_by_its_place(value: Any, path: str) -> None:
    with pytest.raises(Misfit) as caught:
        write(value)

    assert caught.value.path == path


def test_pairs_of_surrogates_are_sent() -> None:
    assert write("\U0001f600 \\ud800") == b'"\\ud83d\\ude00 \\\\ud800"'


def test_bytes_files_and_streams_are_no_json() -> None:
    kinds = [bytes, Path, AsyncIterator[bytes], bytes | None]

    assert all(map(is_raw, kinds))
    assert not any(map(is_raw, [dict, Order, Model, str, None, UNTYPED]))


def test_pydantic_is_imported_by_handlers_only() -> None:
    program = (
        "import sys; from arc_agent.handlers.loading import load_handlers;"
        "from arc_agent.config.handler_sections import HandlersSection;"
        "from arc_agent.handlers.descriptions import advertised;"
        "advertised(load_handlers(HandlersSection()), HandlersSection());"
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Schemas


def test_a_schema_says_what_each_field_is_for() -> None:
    found = schema(Order, "validation")

    assert found is not None
    item = found["$defs"]["Item"]
    assert item["properties"]["price"] == {
        "type": "integer",
        "minimum": 0,
        "description": "In cents",
    }
    assert item["required"] == ["price"]


def test_the_parts_of_a_model_within_a_struct_can_be_found_from_the_root() -> None:
    found = schema(Basket, "validation")

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            inner = set().union(*map(references, value.values())) if value else set()
            return inner | ({value["$ref"]} if "$ref" in value else set())
        return set().union(*map(references, value)) if isinstance(value, list) and value else set()

    assert found is not None
    assert references(found) == {f"#/$defs/{name}" for name in found["$defs"]}
    assert "Model.Model" in found["$defs"]


def test_params_and_result_are_advertised_unless_they_say_nothing() -> None:
    def typed(params: Item) -> Order: ...
    def untyped(params, ctx) -> Any: ...
    def raw(params: bytes) -> AsyncIterator[bytes]: ...

    (one,), (two,), (three,) = (
        advertised([made(each)], HandlersSection()) for each in (typed, untyped, raw)
    )

    assert one.params_schema is not None
    assert one.result_schema is not None
    assert one.params_schema["$ref"] == "#/$defs/Item"
    assert [two.params_schema, two.result_schema] == [None, None]
    assert [three.params_schema, three.result_schema] == [None, None]


def test_a_schema_that_is_too_large_is_left_out_alone() -> None:
    huge = msgspec.defstruct("Huge", [(f"field_{number}", int) for number in range(1000)])

    def take(params: Any) -> Item: ...

    take.__annotations__["params"] = huge

    both = made(take)

    (found,) = advertised([both], HandlersSection())
    (silent,) = advertised([both], HandlersSection(max_schema_bytes=0))

    assert found.params_schema is None
    assert found.result_schema is not None
    assert silent.result_schema is None


def test_all_schemas_together_are_bounded() -> None:
    def take(params: Item): ...

    handlers = [made(take)] * 100
    (one,) = advertised(handlers[:1], HandlersSection())
    size = len(msgspec.json.encode(one.params_schema))

    found = advertised(handlers, HandlersSection(max_schema_bytes=size))

    assert sum(each.params_schema is not None for each in found) == 32


def test_a_bad_annotation_names_handler_and_parameter() -> None:
    def take(params: Path) -> None: ...

    with pytest.raises(HandlerError, match=r"^x \(test\): the parameter params: Path cannot be"):
        made(take)
