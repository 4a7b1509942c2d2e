"""`arc-agent run`, `run-once` and `check-config`."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import Any, Final

from arc_agent.cli.output import DONE, begin_log, note
from arc_runtime.children import go_on_under_init
from arc_runtime.environment import OWN_ENVIRON, take_variables
from arc_runtime.startup.light_imports import import_small_aiohttp

_COLLECTED_AFTER: Final = (10_000, 20, 50)
"""Objects made until the garbage collector walks the young ones, and so on. Almost nothing in the
agent is in a cycle, and what a handler's code leaves in cycles is still found."""


def run(given: argparse.Namespace) -> int:
    """Carry out one of these commands; return the exit code. Raises what a start raises."""
    if given.command == "run" and os.getpid() == 1:
        go_on_under_init()
    begin_log()
    from arc_agent.cli.place import overrides_of  # both after structlog's light import
    from arc_agent.config.reading import TOKEN_VARIABLES

    take_variables(*TOKEN_VARIABLES)
    if given.command == "check-config":
        return _check(given.file)
    overrides = overrides_of(given)
    if given.command == "run-once":
        return _run_once(given.config, overrides, given.wait)
    return _run(given.config, overrides)


def _check(file: Path) -> int:
    """Load a configuration with its handlers, and name them."""
    from arc_agent.work.live_config import LiveConfig, Source, exposed_secrets

    live = LiveConfig(Source(file=file, environ=OWN_ENVIRON, overrides={}))
    names = ", ".join(handler.name for handler in live.registry)
    note(f"{file}: ok; {len(live.registry)} handlers: {names}")
    for line in exposed_secrets(live.config, file):
        note(f"warning: {line}")
    return DONE


def _run(file: Path | None, overrides: dict[str, Any]) -> int:
    """Run an agent until it is stopped."""
    import_small_aiohttp()
    from arc_agent.agent import Agent
    from arc_agent.host.event_loop import run_to_end
    from arc_agent.work.live_config import LiveConfig, Source

    live = LiveConfig(Source(file=file, environ=OWN_ENVIRON, overrides=overrides))
    live.configure_logs()
    live.warn_of_exposed_secrets()
    live.check_host()
    _spare_collections()

    async def live_and_end() -> int:
        agent = Agent(live)
        code = await agent.run()
        if agent.has_abandoned:
            sys.stderr.flush()
            os._exit(code)  # a handler that ignores its cancellation would keep the process alive
        return code

    return run_to_end(live_and_end())


def _spare_collections() -> None:
    """Keep the garbage collector from walking what is imported over and over."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTED_AFTER)


def _run_once(file: Path | None, overrides: dict[str, Any], wait_seconds: float) -> int:
    """Run the commands that are ready."""
    from arc_agent.cli import run_once
    from arc_agent.work.live_config import LiveConfig, Source

    live = LiveConfig(Source(file=file, environ=OWN_ENVIRON, overrides=overrides))
    live.configure_logs()
    live.warn_of_exposed_secrets()
    return run_once.run(live, wait_seconds)
