"""The arguments of a program, with params among them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Final

from arc_agent.config.declared_handlers import ExecSection
from arc_agent.handlers.declared.placeholders import Param, Params, check_argument
from arc_agent.handlers.registry import HandlerError

_INTERPRETERS: Final = re.compile(
    r"(ba|da|a|z|k|mk|c|tc|fi)?sh|busybox|su|runuser|env|(python|perl|ruby|php|lua|node)[0-9.]*"
)
_TAKES_CODE: Final = re.compile(r"-[A-Za-z]*[ceESr]|--(eval|command|execute|split-string)")
"""`sh -c`, `perl -e`, `env -S`, `php -r`: the next argument is code."""


class Argv:
    """The arguments that a section declares, to be filled with params."""

    def __init__(self, section: ExecSection, params: Params, key: str) -> None:
        """Raise HandlerError for a placeholder in a place where none may be."""
        self._parts: list[tuple[str, Param | None, Callable[[Any], str]]] = []
        used: set[str] = set()
        is_after_dashes = False
        for index, text in enumerate(section.argv):
            where = f"{key}.argv[{index}]"
            param = params.placeholder(text, where)
            if param is not None:
                if index == 0:
                    raise HandlerError(f"{where}: argv starts with the program")
                if param.schema.values is None and _reads_code(section.argv[:index]):
                    raise HandlerError(
                        f"{where}: {section.argv[0]} would run what the sender writes;"
                        " only a param with an enum may stand here"
                    )
                make = check_argument(param, is_after_dashes=is_after_dashes)
                used.add(param.name)
            else:
                make = str
            self._parts.append((text, param, make))
            is_after_dashes = is_after_dashes or text == "--"
        self.has_placeholders = bool(used)
        if self.has_placeholders and section.stdin != "params":
            whole = "{params_file}" in section.argv
            params.refuse_unused(set(params.by_name) if whole else used)

    def filled(self, values: Mapping[str, Any]) -> list[str]:
        """Return the arguments for these values. Raises CommandFailed INVALID_PARAMS."""
        return [
            text if param is None else make(values[param.name]) for text, param, make in self._parts
        ]


def _reads_code(before: list[str]) -> bool:
    """Return True if an interpreter among these arguments reads the next one as code."""
    if not before or not _TAKES_CODE.fullmatch(before[-1]):
        return False
    return any(_INTERPRETERS.fullmatch(PurePath(each).name) for each in before[:-1])
