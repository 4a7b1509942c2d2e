"""A page of the documentation, read into the examples that a reader would type or save.

A fence's language says what an example is: `console` has commands after `$ ` (continued after `> `)
with what they show, `sh` has commands whose output the page leaves out, `python` is a program or,
with `file=NAME`, a module to save. An example that cannot run on any machine has a line
`<!-- not run: REASON -->` above its fence.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n+)?"
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_STEP = re.compile(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A command of a `console` example, and what the page shows after it."""

    typed: str
    shown: str


@dataclass(frozen=True)
class Example:
    """A fenced block of a page."""

    language: str
    """The first word after the fence; empty without one."""
    file: str | None
    """The name under which a reader saves it."""
    body: str
    line: int
    """The line of the page on which the block begins."""
    span: tuple[int, int]
    """The place of the body in the page's text."""
    reason: str | None
    """The reason why it is not run."""

    def steps(self) -> list[Step]:
        """Return the commands of a `console` example with their output."""
        return [Step(typed, shown) for typed, shown in _STEP.findall(self.body)]

    def commands(self) -> list[str]:
        """Return the commands of an `sh` example; one may have several lines."""
        commands: list[str] = []
        rest = ""
        for line in self.body.splitlines(keepends=True):
            rest += line
            if _is_complete(rest):
                commands.append(rest)
                rest = ""
        assert not rest.strip(), f"a command has no end: {rest}"
        return [command for command in commands if command.strip()]


def read_examples(text: str) -> list[Example]:
    """Return the fenced blocks of a page, in order."""
    return [_example(text, found) for found in _FENCE.finditer(text)]


def pages() -> list[Path]:
    """Return README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def typed_pages() -> list[Path]:
    """Return the pages that are typed: the walk of docs/protocol.md has a test of its own."""
    return [page for page in pages() if page.stem != "protocol"]


def _example(text: str, found: re.Match[str]) -> Example:
    language, _, rest = found["info"].strip().partition(" ")
    file = rest.removeprefix("file=") if rest.startswith("file=") else None
    line = text.count("\n", 0, found.start("info")) + 1
    return Example(language, file, found["body"], line, found.span("body"), found["reason"])


def _is_complete(command: str) -> bool:
    """Return True if a shell needs no further line to run a command."""
    checked = subprocess.run(
        ["bash", "-n"], input=command, capture_output=True, text=True, check=False
    )
    return not checked.returncode and not checked.stderr
