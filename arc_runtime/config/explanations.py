"""Explanations turn an error of msgspec into a key and a sentence in the words of the docs.

msgspec names no key of a free mapping (`handlers.exec[...].argv`), and its types are Python's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

from arc_runtime.config.options import describe, item_type, section, value_type

_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN_FIELD: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING_FIELD: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_WRONG_KIND: Final = re.compile(r"Expected `[^`]*`, got `(\w+)`")
_OUT_OF_BOUNDS: Final = re.compile(r"Expected `(int|float)` [<>]=? \S+|Invalid (enum )?value .*")
_KINDS: Final = {
    "str": "text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
    "array": "a list",
    "object": "a mapping",
    "date": "a date",
    "datetime": "a date",
}
"""By msgspec's name of what was found, the word for it."""

Step = str | int


def explain(
    text: str, tree: Any, kind: type[msgspec.Struct], convert: Callable[[Any], object]
) -> tuple[str | None, str]:
    """Return the key and the message in an error of msgspec about a configuration.

    `tree` is the configuration as it was read, and `convert` raises ValidationError for it.
    """
    message, found, where = text.rpartition(" - at `")
    if not found:
        message, where = text, ""
    steps = _resolved(text, where.rstrip("`").removeprefix("$"), tree, convert)
    path = _shown(steps)
    for pattern, meaning in ((_UNKNOWN_FIELD, "unknown key"), (_MISSING_FIELD, "is required")):
        if field := pattern.fullmatch(message):
            return f"{path}.{field[1]}" if path else field[1], meaning
    expected = _expected(inspect.type_info(kind), steps)
    if expected is not None:
        if wrong := _WRONG_KIND.fullmatch(message):
            found_kind = _KINDS.get(wrong[1])
            message = f"Expected {expected}" + (f", not {found_kind}" if found_kind else "")
        elif _OUT_OF_BOUNDS.fullmatch(message):
            message = f"Expected {expected}"
    return path or None, message.replace("`str`", "text")


def _resolved(
    text: str, where: str, tree: Any, convert: Callable[[Any], object]
) -> Sequence[Step | None]:
    """Return the steps of a path; None stands for a key that cannot be found."""
    steps: list[Step | None] = []
    for name, index in _STEP.findall(where):
        if name:
            steps.append(name)
        elif index != "...":
            steps.append(int(index))
        else:
            steps.append(_culprit(text, tree, steps, convert))
    return steps


def _culprit(
    text: str, tree: Any, steps: Sequence[Step | None], convert: Callable[[Any], object]
) -> str | None:
    """Return the key of the mapping at `steps` whose entry alone makes the same error."""
    mapping = tree
    for step in steps:
        if step is None:
            return None
        mapping = mapping[step]
    for name, value in cast("dict[str, Any]", mapping).items():
        try:
            convert(_replaced(tree, cast("Sequence[Step]", steps), {name: value}))
        except msgspec.ValidationError as error:
            if str(error) == text:
                return name
    return None


def _replaced(tree: Any, steps: Sequence[Step], value: Any) -> Any:
    """Return a tree with another value at `steps`."""
    if not steps:
        return value
    first, *others = steps
    inner = _replaced(tree[first], others, value)
    if isinstance(tree, dict):
        return {**cast("dict[str, Any]", tree), cast("str", first): inner}
    items: list[Any] = list(tree)
    items[cast("int", first)] = inner
    return items


def _shown(steps: Sequence[Step | None]) -> str:
    """Return a path as text: `handlers.exec.disk.usage.argv[1]`."""
    path = ""
    for step in steps:
        if isinstance(step, str):
            path = f"{path}.{step}" if path else step
        else:
            path += "[...]" if step is None else f"[{step}]"
    return path


def _expected(kind: inspect.Type, steps: Sequence[Step | None]) -> str | None:
    """Return the type at `steps` in words; None where it cannot be followed."""
    for step in steps:
        struct = section(kind)
        if struct is not None:
            types = {field.encode_name: field.type for field in struct.fields}
            inner = types.get(str(step))
        else:
            inner = item_type(kind) if isinstance(step, int) else value_type(kind)
        if inner is None:
            return None
        kind = inner
    return describe(kind) or None
