"""`arc-server target`: the targets of deployments."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import typer

from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.prefixes import PrefixError
from arc_runtime.terminal.table import Cell, Column, print_note
from arc_runtime.terminal.typer_programs import Program
from arc_server.cli.bounds import named, target_of
from arc_server.cli.database import ConfigOption, DataDirOption, with_store
from arc_server.cli.listing import JsonOption, Output, OutputOption, print_list
from arc_server.ports.deployments import DeploymentStore

targets = Program(
    "target",
    about="Add, list and remove the targets of deployments",
    epilog=examples("arc-server target list", "arc-server target remove acme-eu-1 old-host"),
)

_COLUMNS: Final = (
    Column("DEPLOYMENT"),
    Column("TARGET"),
    Column("TYPE", rank=1),
    Column("DEFAULT", rank=2),
)


class TargetRow(msgspec.Struct, frozen=True):
    """A target as a list shows it."""

    deployment: str
    target: str
    type: str
    is_default: bool

    def cells(self) -> tuple[Cell, ...]:
        """Return the row of the table."""
        return self.deployment, self.target, self.type, "yes" if self.is_default else ""


@targets.command("list", epilog=examples("arc-server target list", "arc-server target list --json"))
def list_targets(
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List the targets of all deployments"""

    async def read(store: DeploymentStore) -> list[TargetRow]:
        return [
            TargetRow(
                each.deployment_id,
                target.resource_id,
                target.resource_type.value,
                target.resource_id == each.default_target_id,
            )
            for each in await store.list_deployments()
            for target in each.targets
        ]

    rows = with_store(config, data_dir, read)
    print_list(rows, _COLUMNS, TargetRow.cells, output=output, as_json=as_json)


@targets.command("add", epilog=examples("arc-server target add acme-eu-1 vault-agent:container"))
def add_target(
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Deployment")],
    target: Annotated[
        str, typer.Argument(metavar="ID[:TYPE]", help="Target; TYPE is daemon by default")
    ],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Register a target, and its deployment if need be"""
    added, deployment = target_of(target), named("DEPLOYMENT", deployment)

    async def add(store: DeploymentStore) -> None:
        await store.register(deployment, added, datetime.now(UTC))

    with_store(config, data_dir, add)
    print_note(f"{target} is a target of {deployment}")


@targets.command("remove", epilog=examples("arc-server target remove acme-eu-1 old-host"))
def remove_target(
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Deployment")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Id of the target")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Remove a target for which no command waits or runs"""

    async def remove(store: DeploymentStore) -> bool:
        return await store.remove_target(deployment, target)

    if not with_store(config, data_dir, remove):
        raise PrefixError(f"the deployment {deployment} has no target {target}")
    print_note(f"{target} is removed from {deployment}")
