"""`arc-agent run-once`: one round of work, for cron and for trying out."""

from __future__ import annotations

import os
import sys

from arc_agent.agent import Agent
from arc_agent.cli.output import fail, show
from arc_agent.host.event_loop import run_to_end
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.once import Once


def run(live: LiveConfig, wait_seconds: float) -> int:
    """Run an agent for one round of work. Return the exit code.

    Raises everything that the start of an agent raises.
    """
    once = Once(wait_seconds)
    agent = Agent(live, once=once)

    async def live_and_end() -> int:
        agent_code = await agent.run()
        once_code, text = once.verdict()
        code = agent_code or once_code
        if code:
            fail(code, text)
        else:
            show(text)
        sys.stdout.flush()
        if agent.has_abandoned:
            os._exit(code)  # a handler that ignores its end would keep the process alive
        return code

    return run_to_end(live_and_end())
