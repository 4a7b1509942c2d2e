"""YAML files of configuration are small and plain: no aliases, no repeated keys."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final, cast

import yaml

MAX_FILE_BYTES: Final = 1024 * 1024
"""Far more than any configuration has."""


class YamlError(Exception):
    """Text is not YAML of this plain kind. The message says where, and does not quote the text."""


class _PlainLoader(yaml.SafeLoader):
    """A plain loader refuses aliases, which can expand without bound, and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node. Raises for an alias."""
        if self.check_event(yaml.AliasEvent):
            alias = cast("yaml.AliasEvent", self.peek_event())  # pyright: ignore[reportUnknownMemberType]
            raise _problem("aliases are not supported", cast("yaml.Mark", alias.start_mark))
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping. Raises for a key that is not text or stands twice."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = cast("Hashable", self.construct_object(key_node, deep=True))  # pyright: ignore[reportUnknownMemberType]
            if not isinstance(key, str):
                raise _problem("keys must be text", key_node.start_mark)
            if key in seen:
                raise _problem("the same key twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Return the one document in `text`; None when it is empty. Raises YamlError."""
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        raise YamlError(f"{_place(error.problem_mark)}{error.problem}") from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", None)
        raise YamlError(f"not YAML: a character at {position} that is not allowed") from None
    except RecursionError:
        raise YamlError("nested too deeply") from None
    except ValueError as error:  # dates that do not exist, integers without end
        raise YamlError(f"not YAML: {error}") from None


def read_yaml(file: Path) -> Any:
    """Return the one document in a UTF-8 file. Raises YamlError, also if it cannot be read."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise YamlError(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise YamlError(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(f"not UTF-8 at byte {error.start}") from None
    return parse_yaml(text)


def _problem(what: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    """Return an error at a place in the text."""
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)


def _place(mark: yaml.Mark | None) -> str:
    """Return `line 3, column 7: `, as editors count."""
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
