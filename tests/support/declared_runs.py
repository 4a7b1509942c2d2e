"""Running a declared handler without an agent around it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec

from arc_agent.handlers.context import Context, ParamsSource
from arc_agent.handlers.params import convert_params
from arc_agent.handlers.registry import Handler


class Run:
    """One run of a handler; `stopped` is what the agent sets when it is to end."""

    def __init__(self, handler: Handler, directory: Path, params: Any = None) -> None:
        self.handler = handler
        self.data = msgspec.json.encode({} if params is None else params)
        self.stopped = threading.Event()
        directory.mkdir(mode=0o700, exist_ok=True)
        self.context = Context(
            command_id="cmd_1",
            command=handler.name,
            attempt=1,
            deployment_id="dep-1",
            target=None,
            trace_context=None,
            deadline=None,
            params=ParamsSource(data=self.data, size=len(self.data)),
            remaining=lambda: float("inf"),
            is_stopped=self.stopped.is_set,
            make_directory=lambda: directory,
            announce_restart=lambda result: None,
        )

    async def __call__(self) -> Any:
        """Return what it returns; a file or a stream as the bytes in it."""
        arguments: dict[str, Any] = {}
        if self.handler.params_name:
            arguments[self.handler.params_name] = convert_params(self.data, self.handler)
        if self.handler.context_name:
            arguments[self.handler.context_name] = self.context
        result = await self.handler.call(**arguments)
        if isinstance(result, Path):
            return result.read_bytes()
        if hasattr(result, "__aiter__"):
            return b"".join([chunk async for chunk in result])
        return result
