"""A page of the docs, typed into a booted root as a reader types it.

Blocks of `sh` are typed as they stand, of `console` the lines after the prompt, and a block of
another language with `file=` is saved. A program that stays in the foreground gets a terminal of
its own. Nothing else is done: a step that the page does not name fails the test.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path
from subprocess import Popen
from typing import Final, NamedTuple

from tests.support.booted_root import BootedRoot
from tests.support.waiting import wait_until

_BLOCK: Final = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_STAYS: Final = {"arc-server serve ": "READY http", "arc-agent run ": "ready"}
"""Programs that stay in the foreground, and what they print once they work."""
_LOOP: Final = """\
while IFS= read -r -d '' typed; do
    eval "$typed" </dev/null
    printf '\\036%d\\036\\n' $?
done
"""
"""A shell that types what it reads. What it starts cannot read the lines that follow."""
_ENDED: Final = re.compile("\036(\\d+)\036\n")


class Block(NamedTuple):
    """A block of code."""

    language: str
    options: str
    text: str


def sections(page: Path) -> dict[str, list[Block]]:
    """The blocks of a page by the heading that they stand under."""
    found: dict[str, list[Block]] = {}
    for part in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
        title, _, rest = part.partition("\n")
        found[title] = [Block(*each.groups()) for each in _BLOCK.finditer(rest)]
    return found


class Terminal:
    """A shell in a root, which keeps its directory and its variables from line to line."""

    def __init__(self, root: BootedRoot) -> None:
        self._shell: Popen[str] = root.shell(_LOOP)
        self._printed = ""
        self._is_over = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def type(self, line: str, seconds: float = 300.0) -> str:
        """Type a line and wait for its end; what it printed. It must end with 0."""
        start = len(self._printed)
        self._send(line)
        with self._changed:
            self._changed.wait_for(
                lambda: _ENDED.search(self._printed, start) or self._is_over, seconds
            )
            ended = _ENDED.search(self._printed, start)
        printed = self._printed[start:]
        assert ended is not None, f"{line}\ndid not end: {printed}"
        assert ended[1] == "0", f"{line}\nended with {ended[1]}: {printed}"
        return printed[: ended.start() - start]

    def leave_running(self, line: str, until: str) -> None:
        """Type a line whose program stays, and wait until it has printed something."""
        self._send(line)
        wait_until(lambda: until in self._printed or self._shell.poll() is not None, 60)
        assert until in self._printed, f"{line}\nprinted: {self._printed}"

    def close(self) -> None:
        """End the shell and what it has started."""
        os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()
        self._reader.join()
        for pipe in (self._shell.stdin, self._shell.stdout):
            assert pipe is not None
            pipe.close()

    def _send(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{text}\0")
        self._shell.stdin.flush()

    def _read(self) -> None:
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            with self._changed:
                self._printed += line
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


class Reader:
    """A reader who types a page, block by block."""

    def __init__(self, root: BootedRoot, replaced: dict[str, str]) -> None:
        """Type `replaced` values in place of what the page leaves open."""
        self._root = root
        self._replaced = replaced
        self._main = Terminal(root)
        self._others: list[Terminal] = []
        self.in_each_terminal = ""
        """What the page says to do in each terminal that is opened."""

    def type(self, block: Block) -> str:
        """Do what a block says; what was printed in the main terminal."""
        if "file=" in block.options:
            name = block.options.partition("file=")[2].split()[0]
            directory = self._main.type("pwd").strip()
            self._root.write(f"{directory}/{name}", block.text)
            return ""
        if block.language not in ("sh", "console"):
            return ""
        lines = block.text
        if block.language == "console":
            lines = "\n".join(line[2:] for line in lines.splitlines() if line.startswith("$ "))
        for old, new in self._replaced.items():
            lines = lines.replace(old, new)
        return "".join(self._type_line(line) for line in lines.splitlines() if line.strip())

    def _type_line(self, line: str) -> str:
        """Type a line; what was printed. A program that stays gets a terminal of its own."""
        mark = next((mark for name, mark in _STAYS.items() if name in line), None)
        if mark is None:
            return self._main.type(line)
        directory = self._main.type("pwd").strip()
        other = Terminal(self._root)
        self._others.append(other)
        for each in (f"cd {directory}", *self.in_each_terminal.splitlines()):
            other.type(each)
        other.leave_running(line, mark)
        return ""

    def close(self) -> None:
        """Close all terminals."""
        for each in (self._main, *self._others):
            each.close()
