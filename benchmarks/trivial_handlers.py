"""The handlers of the end-to-end benchmark do the least that a handler can do."""

from __future__ import annotations

from typing import Any

from arc_agent import handler


@handler("bench.async")
async def answer(params: dict[str, Any]) -> dict[str, Any]:
    """Answer in the event loop."""
    return {"rows": params["rows"]}


@handler("bench.sync")
def answer_in_a_thread(params: dict[str, Any]) -> dict[str, Any]:
    """Answer in a thread."""
    return {"rows": params["rows"]}
