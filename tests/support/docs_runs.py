"""A page of the documentation, typed from its top to its end with the real programs.

A page is played in a fresh folder by one shell. `tests/support/docs_stages/PAGE/` holds what the
page takes for granted: files, and `before.sh`, which is typed first. A server and an agent run in
the background until the page's end, or until the page starts them anew.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.support.docs_outputs import Words, is_shown, is_shown_within, refreshed
from tests.support.docs_pages import ROOT, Example, Step, read_examples
from tests.support.docs_terminal import Background, Shell

BIN = Path(sys.executable).parent
STAGES = Path(__file__).parent / "docs_stages"
_READY = {
    "arc-server serve": re.compile(r"^READY ", re.MULTILINE),
    "arc-agent run": re.compile(r"\bready\b"),
}
"""The programs that go on until they are stopped, and what they write when they are ready."""
_LOOKS = re.compile(r"arc (agents|list)|arc-agent (approvals|doctor|status)|curl http")
"""Commands that change nothing: they are typed again while what they show is on its way."""
LOOK_SECONDS = 10.0
_NOT_AGENTS = re.compile(r"server.*\.yaml|policy\.yaml|.*\.rules\.yaml")
_HOSTNAME = "import socket\n\nsocket.gethostname = lambda: 'db-7'\n"
"""Python's programs take the pages' host name for this machine's, so that tables have its width."""
_EXIT_CODE = re.compile(r"\[exit code (\d+)\]\n\Z")


@dataclass(frozen=True)
class Difference:
    """A place where a page and the programs disagree."""

    line: int
    typed: str
    shown: str
    real: str

    def __str__(self) -> str:
        return (
            f"line {self.line}\n$ {self.typed}"
            f"--- the page\n{self.shown}--- the program\n{self.real}"
        )


@dataclass(frozen=True)
class Played:
    """What came of a page: its differences, and its text with the outputs of today."""

    differences: list[Difference]
    text: str


def play(page: Path) -> Played:
    """Type a page in a fresh folder."""
    with tempfile.TemporaryDirectory(prefix="arc-") as place:  # short: a socket's path has bounds
        performance = _Performance(page, Path(place))
        text = performance.run()
    return Played(performance.differences, text)


class _Performance:
    """The typing of one page: its shell, and what differs so far."""

    def __init__(self, page: Path, place: Path) -> None:
        self.differences: list[Difference] = []
        self._text = page.read_text()
        self._stage = STAGES / page.stem.lower()
        self._place = place
        is_secure = (self._stage / "front.py").exists()
        self._words = Words(_names(place, is_secure=is_secure), self._text)
        self._shell = Shell(place, _environment(place))
        self._running: dict[tuple[str, str], Background] = {}
        self._written: list[tuple[tuple[int, int], str]] = []

    def run(self) -> str:
        """Type the page; return its text with the outputs of today."""
        try:
            self._set_the_stage()
            for example in read_examples(self._text):
                if example.reason is None:
                    self._play(example)
        finally:
            self._shell.close()
        text = self._text
        for (start, end), body in reversed(self._written):
            text = text[:start] + body + text[end:]
        return text

    def _set_the_stage(self) -> None:
        """Lay out the programs and the files of the page's stage, and type its `before.sh`."""
        (self._place / ".venv").symlink_to(BIN.parent)
        (self._place / "bin").mkdir()
        (self._place / "bin/sitecustomize.py").write_text(_HOSTNAME)
        if shutil.which("curl") is None:
            curl = shlex.join([sys.executable, str(ROOT / "tests/support/curl.py")])
            (self._place / "bin/curl").write_text(f'#!/bin/sh\nexec {curl} "$@"\n')
            (self._place / "bin/curl").chmod(0o755)
        if not self._stage.is_dir():
            return
        for file in self._stage.iterdir():
            (self._place / file.name).write_text(self._words.typed(file.read_text()))
        before = (self._stage / "before.sh").read_text()
        self._type_all(Example("sh", None, before, 0, (0, 0), None))

    def _play(self, example: Example) -> None:
        if example.file is not None:
            file = self._place / example.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self._words.typed(example.body))
        if example.language == "sh":
            self._type_all(example)
        elif example.language == "console":
            steps = [self._type(step, example.line) for step in example.steps()]
            body = "".join(f"$ {step.typed}{step.shown}" for step in steps)
            self._written.append((example.span, body))
        elif example.language == "python" and example.file is None:
            file = self._place / f"line_{example.line}.py"
            file.write_text(self._words.typed(example.body))
            self._must_end_well(f"python {file.name}\n", example.line)
        elif example.language == "yaml":
            self._check_configuration(example)

    def _type_all(self, example: Example) -> None:
        """Type the commands of an `sh` example; each has to end with 0."""
        for command in example.commands():
            if _long_running(command):
                self._start(command)
            else:
                self._must_end_well(command, example.line)

    def _must_end_well(self, command: str, line: int) -> None:
        real, code = self._shell.run(self._words.typed(command))
        if code:
            self._differ(line, command, "", f"{real}[exit code {code}]\n")

    def _type(self, step: Step, line: int) -> Step:
        """Type a command of a `console` example; return it with its output of today."""
        command = step.typed.replace("\n> ", "\n")
        shown = self._words.shown(self._words.typed(step.shown))
        if _long_running(command) and not _EXIT_CODE.search(step.shown):
            real = self._words.shown(self._start(command))
            is_right = is_shown_within(shown, real)
        else:
            if command.startswith("arc-agent run-once"):
                self._stop("arc-agent run", command)
            real = self._end(command)
            if _LOOKS.match(command):
                end = time.monotonic() + LOOK_SECONDS
                while not is_shown(shown, real) and time.monotonic() < end:
                    real = self._end(command)
            is_right = is_shown(shown, real)
        if is_right:
            self._words.learn(step.shown, real)
            return step
        self._differ(line, step.typed, step.shown, real)
        after = refreshed(step.shown, real)
        self._words.learn(after, real)
        return Step(step.typed, after)

    def _end(self, command: str) -> str:
        """Run a command to its end; return what the page would show."""
        real, code = self._shell.run(self._words.typed(command))
        return self._words.shown(real) + (f"[exit code {code}]\n" if code else "")

    def _start(self, command: str) -> str:
        """Start a server or an agent and wait until it is ready; return what it wrote."""
        program = " ".join(_long_running(command))
        self._stop(program, command)
        background = self._shell.start(self._words.typed(command), _READY[program])
        self._running[program, _data(command)] = background
        return background.text

    def _stop(self, program: str, command: str) -> None:
        """End the program that the page has started before with the data of a command."""
        before = self._running.pop((program, _data(command)), None)
        if before is not None:
            self._shell.stop(before)

    def _check_configuration(self, example: Example) -> None:
        """Let the program read a configuration; a part of one gets what the agent has to have."""
        name = example.file or f"line_{example.line}.yaml"
        if _NOT_AGENTS.fullmatch(name) and not name.startswith("server"):
            return
        if example.file is None:
            head = "server: {url: http://127.0.0.1:8484}\ndeployment: acme-eu-1\n"
            (self._place / name).write_text(self._words.typed(head + example.body))
        program = "arc-server" if name.startswith("server") else "arc-agent"
        self._must_end_well(f"{program} check-config {name}\n", example.line)

    def _differ(self, line: int, typed: str, shown: str, real: str) -> None:
        self.differences.append(Difference(line, typed, shown, real))


def _data(command: str) -> str:
    """Return the data directory that a command names; nothing if it takes the usual one."""
    given = pairwise(shlex.split(command, comments=True))
    return next((value for name, value in given if name == "--data-dir"), "")


def _long_running(command: str) -> list[str]:
    """Return the two words of a program that goes on until it is stopped, or nothing."""
    found = re.search(rf"^(?:\w+=\S* )*({'|'.join(_READY)})(?!\S)", command)
    return found[1].split() if found else []


def _names(place: Path, *, is_secure: bool) -> dict[str, str]:
    """Return the pages' names of hosts and folders, and what stands for them in a test.

    A stage with a `front.py` has TLS before the server.
    """
    server, cache, figures, front = (f"127.0.0.1:{_free_port()}" for _ in range(4))
    remote = front.replace("127.0.0.1", "https://localhost") if is_secure else f"http://{server}"
    folders = ("/etc/arc", "/run/secrets", "/var/lib/arc", "/var/lib/shop", "/backups")
    return {
        "http://127.0.0.1:8484": f"http://{server}",
        "127.0.0.1:8484": server,
        "https://arc.example.com": remote,
        "arc.example.com": "localhost",
        "127.0.0.1:8080": cache,
        "127.0.0.1:9180": figures,
        "/usr/src/arc": str(ROOT),
        "/home/ops": str(place),
        **{folder: f"{place}{folder}" for folder in folders},
    }


def _free_port() -> int:
    """Return a port of this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _environment(place: Path) -> dict[str, str]:
    """Return what a new user's shell has set."""
    return {
        "PATH": f"{place}/bin:{BIN}:{os.environ['PATH']}",
        "HOME": str(place),
        "PYTHONPATH": f"{place}/bin",
        "TERM": "dumb",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
    }
