"""`arc-agent test-handler` and `new-handler`, for authors of handlers.

Exit codes: 0 done; 1 the handler failed; 2 usage or configuration; 4 the host's policy denies it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from arc_agent import testing
from arc_agent.cli.output import DONE, NO, NOT_ALLOWED, UNUSABLE, fail, log_line
from arc_agent.cli.policy import read_given_params
from arc_agent.config.params_schema import read_params
from arc_agent.guard.policy import Action, Question
from arc_agent.handlers.lifespans import open_all
from arc_agent.testing import Result
from arc_agent.work.live_config import LiveConfig, Source
from arc_runtime.terminal.suggestions import no_such

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MAX_NAME_CHARS: Final = 64


def run(given: argparse.Namespace) -> int:
    """Carry out one of these commands; return the exit code. Raises what a start raises."""
    try:
        if given.command == "new-handler":
            return _new(given.name, given.dir)
        return _test(given)
    except (OSError, ValueError) as error:
        return fail(UNUSABLE, error)


# test-handler


def _test(given: argparse.Namespace) -> int:
    """Run a handler as configured. Raises SettingsError, HandlerError, OSError, ValueError."""
    data = read_given_params(given.params)
    overrides: dict[str, Any] = {"handlers.modules": given.handlers}
    if given.config is None:  # the configuration requires a server, this command does not use it
        overrides |= {"server.url": "http://localhost", "deployment": "test"}
    if given.handlers:
        sys.path.insert(0, os.getcwd())
    live = LiveConfig(Source(file=given.config, environ=os.environ, overrides=overrides))
    live.configure_logs()
    if live.registry.get(given.name) is None:
        known = [handler.name for handler in live.registry]
        if Path(given.name).is_file():
            what = f"{given.name} is a file: name a handler, and the file by --handlers"
            return fail(UNUSABLE, f"{what}\nThere are {', '.join(known)}")
        return fail(
            UNUSABLE, f"{no_such('handler', given.name, known)}\nThere are {', '.join(known)}"
        )
    denied = None if given.no_policy else _denied(live, given.name, data)
    if denied is not None:
        return fail(NOT_ALLOWED, f"DENIED_BY_POLICY: {denied} (--no-policy runs it anyway)")
    try:
        result = asyncio.run(_run(live, given.name, data, given.timeout))
    except TimeoutError as error:
        return fail(NO, f"HANDLER_TIMEOUT: {error}")
    return _show(result)


async def _run(live: LiveConfig, name: str, data: bytes, timeout_seconds: float) -> Result:
    """Run a handler inside the lifespans. Raises TimeoutError, LifespanFailed."""
    handler = live.registry.get(name)
    assert handler is not None
    seconds = live.config.handlers.lifespan_seconds
    async with AsyncExitStack() as stack:
        registry = live.registry
        await open_all(registry.lifespans, registry.provisions, stack, seconds)
        limit = min(timeout_seconds, handler.timeout_seconds or timeout_seconds)
        return await testing.run(handler, data, timeout_seconds=limit)


def _denied(live: LiveConfig, name: str, data: bytes) -> str | None:
    """Return why the host's policy denies a command; None if it allows it or asks a person."""
    if live.policy is None:
        return None
    question = Question(
        command=name, signed_by=None, at=datetime.now(UTC), params=lambda: read_params(data)
    )
    verdict = live.policy.judge(question)
    return None if verdict is None or verdict.action is not Action.DENY else verdict.for_sender


def _show(result: Result) -> int:
    """Write the result to standard output, or an error to standard error."""
    if result.retry_after is not None:
        message = f": {result.message}" if result.message else ""
        return fail(NO, f"to run again after {result.retry_after:g} s{message}")
    if result.code is not None:
        return fail(
            NO, "\n".join(filter(None, (f"{result.code}: {result.message}", result.details)))
        )
    sys.stdout.buffer.write(result.data)
    if sys.stdout.isatty() or not result.data.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    return DONE


# new-handler


def _new(name: str, directory: Path) -> int:
    """Create the package. Raises OSError."""
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_CHARS:
        return fail(UNUSABLE, f"{name!r}: a name has small letters, digits and hyphens only")
    place = directory / name
    if place.exists():
        return fail(UNUSABLE, f"{place} exists already")
    module = name.replace("-", "_")
    for path, text in _FILES.items():
        file = place / path.format(module=module)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("NAME", name).replace("MODULE", module))
    log_line(
        f"{place}: a package with the command {name}.greet\n"
        f"  test it:   python -m pytest {place}, once pytest is installed\n"
        f'  try it:    arc-agent test-handler {name}.greet --params \'{{"name": "Ada"}}\''
        f" --handlers {place / module / 'handlers.py'}\n"
        f"  use it:    pip install {_as_path(place)}, where the agent is installed"
    )
    return DONE


def _as_path(place: Path) -> str:
    """Return a directory as pip takes it: a bare name would be a package of the registry's."""
    return str(place) if place.is_absolute() else f"./{place}"


_FILES: Final = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "NAME"
version = "0.1.0"
description = "Commands for arc-agent"
requires-python = ">=3.11"
dependencies = ["arc-commands"]

[project.entry-points."arc_agent.handlers"]
NAME = "MODULE.handlers"

[tool.hatch.build.targets.wheel]
packages = ["MODULE"]

[tool.pytest.ini_options]
pythonpath = ["."]
""",
    "{module}/__init__.py": '''"""Commands for arc-agent."""
''',
    "{module}/handlers.py": '''"""Handlers, found by the entry point in pyproject.toml."""

from __future__ import annotations

from dataclasses import dataclass

from arc_agent import CommandFailed, Context, handler


@dataclass
class Greeting:
    """The params of NAME.greet."""

    name: str
    times: int = 1


@handler("NAME.greet", description="Greets a person")
async def greet(params: Greeting, ctx: Context) -> dict[str, list[str]]:
    """Run in the agent's event loop; a plain `def` runs in a thread."""
    if params.times < 1:
        raise CommandFailed("NOTHING_TO_SAY", "times: must be 1 or more")
    ctx.log.info("greeted", times=params.times)
    return {"said": [f"Hello, {params.name}!"] * params.times}
''',
    "tests/test_handlers.py": '''"""Tests of the handlers, without a server."""

from __future__ import annotations

import asyncio

from arc_agent.testing import run
from MODULE.handlers import greet


def test_a_person_is_greeted() -> None:
    result = asyncio.run(run(greet, {"name": "Ada", "times": 2}))

    assert result.json() == {"said": ["Hello, Ada!", "Hello, Ada!"]}


def test_params_that_do_not_fit_are_refused() -> None:
    result = asyncio.run(run(greet, {"name": 7}))

    assert result.code == "INVALID_PARAMS"


def test_nothing_to_say_is_an_error() -> None:
    result = asyncio.run(run(greet, {"name": "Ada", "times": 0}))

    assert result.code == "NOTHING_TO_SAY"
''',
}
