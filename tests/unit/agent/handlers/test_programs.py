"""Programs that YAML declares: what a start that is cut off leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from arc_agent.config.declared_handlers import ExecSection
from arc_agent.handlers.declared import programs
from arc_agent.handlers.declared.programs import exec_handler
from tests.support.declared_runs import Run


def open_pipes() -> set[str]:
    links = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
            links.append(os.readlink(each))
    return {link for link in links if link.startswith("pipe:")}


async def test_a_start_that_is_cancelled_leaves_no_pipe_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_started, goes_on = threading.Event(), threading.Event()
    start = programs._Start.__call__

    def slow_start(self: Any, *arguments: Any) -> Any:
        started = start(self, *arguments)
        has_started.set()
        goes_on.wait()
        return started

    monkeypatch.setattr(programs._Start, "__call__", slow_start)
    section = ExecSection(argv=["/bin/sleep", "60"])
    run = asyncio.create_task(Run(exec_handler("x", section), tmp_path / "run")())
    before = open_pipes()
    await asyncio.to_thread(has_started.wait)
    during = open_pipes()

    run.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert during > before
    assert open_pipes() == before
