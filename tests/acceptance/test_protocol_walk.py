"""The walk of docs/protocol.md as it is typed, by a shell and curl, against a real server.

An answer that is JSON is compared as JSON. In what the page shows, `…` stands for any characters,
and an instant for any instant; everything else must be what the server says.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.processes import BIN, Process

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "protocol.md").read_text()
STAND_IN = TESTS / "support" / "curl.py"
MARK = "--- step "
CURLS = [*(["curl"] if shutil.which("curl") else []), "stand-in"]
"""Real curl wherever there is one. The stand-in runs everywhere, so that it works where it must."""


class Step(NamedTuple):
    """A command of the page and the output that the page shows for it."""

    typed: str
    output: str


def steps_of(page: str) -> Sequence[Step]:
    """Read the console blocks of a page: `$ ` begins a command, `> ` continues it."""
    console = "".join(re.findall(r"```console\n(.*?)```", page, re.DOTALL))
    found = re.findall(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", console, re.MULTILINE)
    return [Step(re.sub(r"^> ", "", typed, flags=re.MULTILINE), shown) for typed, shown in found]


async def run(steps: Sequence[Step], place: Path, arc: str, path: str) -> Sequence[Step]:
    """Type all steps into one shell and return them with their real output."""
    script = "".join(f"echo; echo '{MARK}'\n{step.typed}" for step in steps)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"exec 2>&1\n{script}"),
        cwd=place,
        env={"PATH": f"{path}:{BIN}:{os.environ['PATH']}", "ARC": arc, "HOME": str(place)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    outputs = out.decode().split(f"\n{MARK}\n")[1:]
    return [Step(step.typed, real) for step, real in zip(steps, outputs, strict=True)]


def read(output: str) -> Any:
    """Read an output: a JSON value, or its lines."""
    try:
        return json.loads(output)
    except ValueError:
        return output.strip().splitlines()


def masked(real: Any, shown: Any) -> Any:
    """Return the real value with what the page may leave open replaced by what the page shows."""
    if isinstance(real, dict) and isinstance(shown, dict):
        return {name: masked(value, shown.get(name)) for name, value in real.items()}
    if isinstance(real, list) and isinstance(shown, list):
        return [masked(*pair) for pair in zip_longest(real, shown[: len(real)])]
    if not isinstance(real, str) or not isinstance(shown, str):
        return real
    open_pattern = ".*".join(map(re.escape, shown.split("…")))
    is_open = re.fullmatch(open_pattern, real) or (is_instant(real) and is_instant(shown))
    return shown if is_open else real


def is_instant(text: str) -> bool:
    """Return True if a text is an instant in UTC as the server writes it."""
    try:
        return text.endswith("Z") and datetime.fromisoformat(text) is not None
    except ValueError:
        return False


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[str]:
    """Run a server with its data where the page has it; its URL."""
    process = await Process.start(
        "server",
        "arc-server",
        *("serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")),
    )
    yield await process.url()
    await process.put_away()


@pytest.mark.parametrize("curl", CURLS)
async def test_the_walk_answers_what_the_page_shows(server: str, tmp_path: Path, curl: str) -> None:
    path = tmp_path / "path"
    path.mkdir()
    if curl == "stand-in":
        script = f'#!/bin/sh\nexec {shlex.join([sys.executable, str(STAND_IN)])} "$@"\n'
        (path / "curl").write_text(script)
        (path / "curl").chmod(0o755)
    steps = steps_of(PAGE)

    done = await run(steps, tmp_path, f"{server}/v1", str(path))

    assert len(steps) > 40
    for shown, real in zip(steps, done, strict=True):
        expected, seen = read(shown.output), read(real.output)
        assert masked(seen, expected) == expected, f"$ {shown.typed}{real.output}"
