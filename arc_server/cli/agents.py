"""`arc-server agent`: the directory of agents."""

from __future__ import annotations

from typing import Annotated

import typer

from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.prefixes import PrefixError
from arc_runtime.terminal.table import print_note
from arc_runtime.terminal.typer_programs import Program
from arc_server.cli.database import ConfigOption, DataDirOption, with_store
from arc_server.ports.store import Store

agents = Program(
    "agent",
    about="Remove agents from the list of agents",
    epilog=examples("arc-server agent remove acme-eu-1 db-7-1f2e3d4c"),
)


@agents.callback()
def root() -> None:
    """Run before every command of the group: with one command alone it would be none."""


@agents.command("remove", epilog=examples("arc-server agent remove acme-eu-1 db-7-1f2e3d4c"))
def remove_agent(
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Deployment")],
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Id of the agent")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Remove an agent that holds no command; one that runs comes back"""

    async def remove(store: Store) -> bool:
        return await store.remove_agent(deployment, agent)

    if not with_store(config, data_dir, remove):
        raise PrefixError(f"the deployment {deployment} has no agent {agent}")
    print_note(f"{agent} is removed from {deployment}")
