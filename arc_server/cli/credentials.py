"""`arc-server credential`: the credentials of enrolled agents."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import typer

from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.table import Cell, Column
from arc_runtime.terminal.typer_programs import Program
from arc_server.cli.database import ConfigOption, DataDirOption, revoke_by_prefix, with_store
from arc_server.cli.listing import JsonOption, Output, OutputOption, print_list
from arc_server.ports.credentials import CredentialStore
from arc_server.ports.records import Credential

credentials = Program(
    "credential",
    about="List and revoke the credentials of enrolled agents",
    epilog=examples("arc-server credential list", "arc-server credential revoke cred_7f3a"),
)

_COLUMNS: Final = (
    Column("ID"),
    Column("DEPLOYMENT", rank=1),
    Column("HOST", rank=2),
    Column("STATE", is_state=True),
    Column("ENROLLED", rank=3),
    Column("BY TOKEN", rank=4),
    Column("TARGET", is_wide=True),
    Column("REVOKED", is_wide=True),
)


class CredentialRow(msgspec.Struct, frozen=True):
    """A credential as a list shows it."""

    id: str
    deployment: str
    hostname: str
    enrolled: datetime
    by: str
    """The id of the enrolment token."""
    revoked: datetime | None
    target: str | None

    @classmethod
    def of(cls, credential: Credential) -> CredentialRow:
        """Return the row of a credential."""
        return cls(
            credential.credential_id,
            credential.deployment_id,
            credential.hostname,
            credential.enrolled_at,
            credential.enrol_token_id,
            credential.revoked_at,
            None if credential.target is None else credential.target.resource_id,
        )

    def cells(self) -> tuple[Cell, ...]:
        """Return the row of the table."""
        state = "active" if self.revoked is None else "revoked"
        return (
            self.id, self.deployment, self.hostname, state, self.enrolled, self.by, self.target,
            self.revoked,
        )  # fmt: skip


@credentials.command(
    "list", epilog=examples("arc-server credential list", "arc-server credential list -o wide")
)
def list_credentials(
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List the credentials of enrolled agents"""

    async def read(store: CredentialStore) -> list[CredentialRow]:
        return [CredentialRow.of(each) for each in await store.list_credentials()]

    rows = with_store(config, data_dir, read)
    print_list(rows, _COLUMNS, CredentialRow.cells, output=output, as_json=as_json)


@credentials.command("revoke", epilog=examples("arc-server credential revoke cred_7f3a"))
def revoke_credential(
    credential_id: Annotated[
        str, typer.Argument(metavar="ID", help="The credential's id, or the beginning of it")
    ],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke a credential; a running server refuses the agent within seconds"""

    async def ids(store: CredentialStore) -> list[str]:
        return [each.credential_id for each in await store.list_credentials()]

    async def revoke(store: CredentialStore, whole: str) -> bool:
        return await store.revoke_credential(whole, datetime.now(UTC))

    revoke_by_prefix(config, data_dir, credential_id, "credential", ids=ids, revoke=revoke)
