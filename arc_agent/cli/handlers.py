"""`arc-agent test-handler` and `new-handler`: for who writes handlers.

Exit codes: 0 done; 1 the handler failed; 2 usage or configuration; 4 the host's policy denies it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from arc_agent.testing import Result
    from arc_agent.work.live_config import LiveConfig

COMMANDS: Final = ("test-handler", "new-handler")
_FAILED: Final = 1
_BAD: Final = 2
_DENIED: Final = 4
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MAX_NAME_CHARS: Final = 64


def add_to(commands: Any) -> None:
    """Add these commands to the parser's."""
    test = commands.add_parser(
        "test-handler",
        help="run one handler here, without a server",
        description="Run one handler here and print its result. Exit code 1: it failed.",
    )
    test.add_argument("name", metavar="NAME", help="the command")
    test.add_argument(
        "--params", default="{}", metavar="JSON", help="JSON, @FILE, or - for standard input"
    )
    test.add_argument("-c", "--config", type=Path, metavar="F", help="the configuration (YAML)")
    test.add_argument(
        "--handlers", action="extend", nargs="+", metavar="MODULE", help="modules, or .py files"
    )
    test.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="default: 60"
    )  # fmt: skip
    test.add_argument(
        "--no-policy", action="store_true", help="run it also if the host's policy denies it"
    )
    new = commands.add_parser(
        "new-handler",
        help="begin a package with a handler and its test",
        description="Make the directory NAME: a package with a handler and its test.",
    )
    new.add_argument("name", metavar="NAME", help="small letters, digits and hyphens")
    new.add_argument("--dir", type=Path, default=Path(), metavar="D", help="where; default: here")


def run(given: argparse.Namespace) -> int:
    """Do one of these commands; the exit code. Raises SettingsError, HandlerError and the like."""
    try:
        if given.command == "new-handler":
            return _new(given.name, given.dir)
        return _test(given)
    except (OSError, ValueError) as error:
        return _say(_BAD, str(error))


# test-handler


def _test(given: argparse.Namespace) -> int:
    """Run a handler with everything that the configuration says."""
    from arc_agent.work.live_config import LiveConfig, Source

    data = _params(given.params)
    overrides: dict[str, Any] = {"handlers.modules": given.handlers}
    if given.config is None:  # a server is not needed, but asked for
        overrides |= {"server.url": "http://localhost", "deployment": "test"}
    if given.handlers:
        sys.path.insert(0, os.getcwd())
    live = LiveConfig(Source(file=given.config, environ=os.environ, overrides=overrides))
    live.configure_logs()
    if live.registry.get(given.name) is None:
        return _say(_BAD, f"there is no handler for {given.name!r}")
    denied = None if given.no_policy else _denied(live, given.name, data)
    if denied is not None:
        return _say(_DENIED, f"DENIED_BY_POLICY: {denied} (--no-policy runs it all the same)")
    try:
        result = asyncio.run(_run(live, given.name, data, given.timeout))
    except TimeoutError as error:
        return _say(_FAILED, f"HANDLER_TIMEOUT: {error}")
    return _show(result)


async def _run(live: LiveConfig, name: str, data: bytes, timeout_seconds: float) -> Result:
    """Lifespans around it. Raises TimeoutError, LifespanFailed."""
    from arc_agent import testing
    from arc_agent.handlers.lifespans import open_all

    handler = live.registry.get(name)
    assert handler is not None
    seconds = live.config.handlers.lifespan_seconds
    async with AsyncExitStack() as stack:
        registry = live.registry
        await open_all(registry.lifespans, registry.provisions, stack, seconds)
        limit = min(timeout_seconds, handler.timeout_seconds or timeout_seconds)
        return await testing.run(handler, data, timeout_seconds=limit)


def _denied(live: LiveConfig, name: str, data: bytes) -> str | None:
    """Why the host's policy would not let it run; None when it would, or a person may."""
    if live.policy is None:
        return None
    from datetime import UTC, datetime

    from arc_agent.config.params_schema import read_params
    from arc_agent.guard.policy import Action, Question

    question = Question(
        command=name, signed_by=None, at=datetime.now(UTC), params=lambda: read_params(data)
    )
    verdict = live.policy.judge(question)
    return None if verdict is None or verdict.action is not Action.DENY else verdict.for_sender


def _show(result: Result) -> int:
    """The result on standard output, an error on standard error."""
    if result.retry_after is not None:
        message = f": {result.message}" if result.message else ""
        return _say(_FAILED, f"to be run again after {result.retry_after:g} s{message}")
    if result.code is not None:
        return _say(
            _FAILED, "\n".join(filter(None, (f"{result.code}: {result.message}", result.details)))
        )
    sys.stdout.buffer.write(result.data)
    if sys.stdout.isatty() or not result.data.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    return 0


def _params(text: str) -> bytes:
    """What --params means. Raises OSError."""
    if text == "-":
        return sys.stdin.buffer.read()
    return Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()


# new-handler


def _new(name: str, directory: Path) -> int:
    """Make the package. Raises OSError."""
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_CHARS:
        return _say(_BAD, f"{name!r}: a name is made of small letters, digits and hyphens")
    place = directory / name
    if place.exists():
        return _say(_BAD, f"{place} is there already")
    module = name.replace("-", "_")
    for path, text in _FILES.items():
        file = place / path.format(module=module)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("NAME", name).replace("MODULE", module))
    return _say(
        0,
        f"{place}: a package with the command {name}.greet\n"
        f"  its test:  pytest {place}\n"
        f"  try it:    arc-agent test-handler {name}.greet --params '{{\"name\": \"Ada\"}}'"
        f" --handlers {place / module / 'handlers.py'}\n"
        f"  use it:    pip install {place}, where the agent is installed",
    )  # fmt: skip


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
    """What NAME.greet takes."""

    name: str
    times: int = 1


@handler("NAME.greet", description="Greets somebody")
async def greet(params: Greeting, ctx: Context) -> dict[str, list[str]]:
    """Runs in the agent's event loop; a plain `def` runs in a thread."""
    if params.times < 1:
        raise CommandFailed("NOTHING_TO_SAY", "times: must be 1 or more")
    ctx.log.info("greeted", times=params.times)
    return {"said": [f"Hello, {params.name}!"] * params.times}
''',
    "tests/test_handlers.py": '''"""Runs the handlers as the agent does, without a server."""

from __future__ import annotations

import asyncio

from arc_agent.testing import run
from MODULE.handlers import greet


def test_somebody_is_greeted() -> None:
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


def _say(code: int, text: str) -> int:
    """A line on standard error; the exit code."""
    sys.stderr.write(f"{text}\n")
    return code
