"""`arc-server deployment`: the deployments that the server knows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import typer

from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.prefixes import PrefixError
from arc_runtime.terminal.table import Cell, Column, print_note
from arc_runtime.terminal.typer_programs import Program
from arc_server.cli.database import ConfigOption, DataDirOption, config_here, with_store
from arc_server.cli.listing import JsonOption, Output, OutputOption, print_list
from arc_server.ports.store import Store

deployment_group = Program(
    "deployment",
    about="List and remove deployments",
    epilog=examples("arc-server deployment list", "arc-server deployment remove acme-eu-1"),
)

_COLUMNS: Final = (
    Column("DEPLOYMENT"),
    Column("TARGETS"),
    Column("DEFAULT", rank=1),
    Column("PUSHED TO", rank=2, is_text=True),
)


class DeploymentRow(msgspec.Struct, frozen=True):
    """A deployment as a list shows it."""

    deployment: str
    targets: list[str]
    default_target: str | None
    push_url: str | None

    def cells(self) -> tuple[Cell, ...]:
        """Return the row of the table."""
        return self.deployment, str(len(self.targets)), self.default_target, self.push_url


@deployment_group.command(
    "list", epilog=examples("arc-server deployment list", "arc-server deployment list --json")
)
def list_deployments(
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List the deployments that the server knows"""

    async def read(store: Store) -> list[DeploymentRow]:
        return [
            DeploymentRow(
                each.deployment_id,
                [target.resource_id for target in each.targets],
                each.default_target_id,
                each.push_url,
            )
            for each in await store.list_deployments()
        ]

    rows = with_store(config, data_dir, read)
    print_list(rows, _COLUMNS, DeploymentRow.cells, output=output, as_json=as_json)


@deployment_group.command("remove", epilog=examples("arc-server deployment remove acme-eu-1"))
def remove_deployment(
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Deployment")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Remove a deployment with its targets and agents; its ended commands stay for their time"""
    configured = [each.id for each in config_here(config, data_dir).deployments]
    if deployment in configured:
        raise PrefixError(f"{deployment} is in the configuration: remove it there first")

    async def remove(store: Store) -> bool:
        return await store.remove_deployment(deployment, datetime.now(UTC))

    if not with_store(config, data_dir, remove):
        raise PrefixError(f"no such deployment: {deployment}")
    print_note(f"{deployment} is removed")
