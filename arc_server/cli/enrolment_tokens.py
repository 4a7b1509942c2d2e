"""`arc-server enrol-token`: enrolment tokens, each good for a number of agents and a time."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec
import typer

from arc_runtime.durations import parse_duration
from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.table import Cell, Column
from arc_runtime.terminal.typer_programs import Program
from arc_server.auth.enrolment import new_enrol_token
from arc_server.cli.bounds import TargetOption, target_of
from arc_server.cli.database import (
    ConfigOption,
    DataDirOption,
    InitOption,
    checked_deployment,
    revoke_by_prefix,
    with_store,
)
from arc_server.cli.listing import JsonOption, Output, OutputOption, print_list
from arc_server.cli.token_file import OutOption, token_output
from arc_server.ports.credentials import CredentialStore
from arc_server.ports.records import EnrolToken

MAX_USES: Final = 100_000
MAX_EXPIRY: Final = timedelta(days=366)

enrolment_tokens = Program(
    "enrol-token",
    about="Create, list and revoke enrolment tokens",
    epilog=examples(
        "arc-server enrol-token create --deployment acme-eu-1 --out enrol.token",
        "arc-server enrol-token list",
    ),
)

_COLUMNS: Final = (
    Column("ID"),
    Column("DEPLOYMENT", rank=1),
    Column("STATE", is_state=True),
    Column("USED", rank=2),
    Column("EXPIRES", rank=3),
    Column("CREATED", rank=4),
    Column("TARGET", is_wide=True),
    Column("REVOKED", is_wide=True),
)


class EnrolTokenRow(msgspec.Struct, frozen=True):
    """An enrolment token as a list shows it, without its hash."""

    id: str
    deployment: str
    uses: int
    used: int
    created: datetime
    expires: datetime
    revoked: datetime | None
    target: str | None

    @classmethod
    def of(cls, token: EnrolToken) -> EnrolTokenRow:
        """Return the row of an enrolment token."""
        return cls(
            token.token_id,
            token.deployment_id,
            token.uses,
            token.used,
            token.created_at,
            token.expires_at,
            token.revoked_at,
            None if token.target is None else token.target.resource_id,
        )

    def cells(self) -> tuple[Cell, ...]:
        """Return the row of the table."""
        used = f"{self.used} of {self.uses}"
        return (
            self.id, self.deployment, self._state, used, self.expires, self.created, self.target,
            self.revoked,
        )  # fmt: skip

    @property
    def _state(self) -> str:
        """Return why no agent can enrol with it, or `active`."""
        if self.revoked is not None:
            return "revoked"
        if self.used >= self.uses:
            return "used"
        return "expired" if self.expires <= datetime.now(UTC) else "active"


@enrolment_tokens.command(
    "create",
    epilog=examples(
        "arc-server enrol-token create --deployment acme-eu-1 --out enrol.token",
        "arc-server enrol-token create --deployment acme-eu-1 --uses 20 --expires 7d",
    ),
)
def create_enrolment_token(
    deployment: Annotated[str, typer.Option(metavar="ID", help="Deployment of the agents")],
    uses: Annotated[
        int, typer.Option(metavar="N", min=1, max=MAX_USES, help="Number of agents to enrol")
    ] = 1,
    expires: Annotated[
        str, typer.Option(metavar="DURATION", help="Life of the token: 30m, 1h, 7d, …")
    ] = "1h",
    target: TargetOption = None,
    out: OutOption = None,
    init: InitOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Create an enrolment token and print it, once"""
    deployment = checked_deployment(deployment)
    try:
        expires_in = timedelta(seconds=parse_duration(expires))
    except ValueError as error:
        raise typer.BadParameter(f"--expires: {error}") from None
    if not timedelta() < expires_in <= MAX_EXPIRY:
        raise typer.BadParameter(f"--expires: must be above 0 and at most {MAX_EXPIRY.days}d")
    made = new_enrol_token(deployment, uses, expires_in, datetime.now(UTC), target_of(target))

    async def put(store: CredentialStore) -> None:
        await store.put_enrol_token(made.stored)

    with token_output(out) as write:
        with_store(config, data_dir, put, makes=init)
        write(made.text)
    sys.stderr.write(f"{made.stored.token_id}\n")


@enrolment_tokens.command(
    "list", epilog=examples("arc-server enrol-token list", "arc-server enrol-token list --json")
)
def list_enrolment_tokens(
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List enrolment tokens, without their text"""

    async def read(store: CredentialStore) -> list[EnrolTokenRow]:
        return [EnrolTokenRow.of(token) for token in await store.list_enrol_tokens()]

    rows = with_store(config, data_dir, read)
    print_list(rows, _COLUMNS, EnrolTokenRow.cells, output=output, as_json=as_json)


@enrolment_tokens.command("revoke", epilog=examples("arc-server enrol-token revoke etok_7f3a"))
def revoke_enrolment_token(
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="The token's id, or the beginning of it")
    ],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke an enrolment token; agents that enrolled with it stay"""

    async def ids(store: CredentialStore) -> list[str]:
        return [token.token_id for token in await store.list_enrol_tokens()]

    async def revoke(store: CredentialStore, whole: str) -> bool:
        return await store.revoke_enrol_token(whole, datetime.now(UTC))

    revoke_by_prefix(config, data_dir, token_id, "enrolment token", ids=ids, revoke=revoke)
