"""`arc-server token`: bearer tokens."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import typer

from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.table import Cell, Column
from arc_runtime.terminal.typer_programs import Program
from arc_server.auth.tokens import Scope, new_token
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
from arc_server.ports.credentials import TokenStore
from arc_server.ports.records import BearerToken

tokens = Program(
    "token",
    about="Create, list and revoke bearer tokens",
    epilog=examples("arc-server token create --scope admin", "arc-server token list"),
)

_COLUMNS: Final = (
    Column("ID"),
    Column("SCOPE"),
    Column("DEPLOYMENT", rank=1),
    Column("STATE", is_state=True),
    Column("CREATED", rank=2),
    Column("REVOKED", is_wide=True),
)


class TokenRow(msgspec.Struct, frozen=True):
    """A token as a list shows it, without its hash."""

    id: str
    scope: str
    deployment: str | None
    created: datetime
    revoked: datetime | None

    @classmethod
    def of(cls, token: BearerToken) -> TokenRow:
        """Return the row of a token."""
        return cls(
            token.token_id, token.scope, token.deployment_id, token.created_at, token.revoked_at
        )

    def cells(self) -> tuple[Cell, ...]:
        """Return the row of the table."""
        state = "active" if self.revoked is None else "revoked"
        return self.id, self.scope, self.deployment, state, self.created, self.revoked


@tokens.command(
    "create",
    epilog=examples(
        "arc-server token create --scope sender --deployment acme-eu-1 --out s.token",
        "arc-server token create --scope agent --deployment acme-eu-1 > agent.token",
        "arc-server token create --scope admin --init --data-dir ./data",
    ),
)
def create_token(
    scope: Annotated[Scope, typer.Option(help="Rights of the token")],
    deployment: Annotated[
        str | None, typer.Option(metavar="ID", help="Bind the token to one deployment")
    ] = None,
    out: OutOption = None,
    init: InitOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Create a token and print it, once"""
    if deployment is not None and scope is Scope.ADMIN:
        raise typer.BadParameter("an admin token is bound to no deployment")
    if deployment is not None:
        deployment = checked_deployment(deployment)
    made = new_token(scope, deployment, datetime.now(UTC))

    async def put(store: TokenStore) -> None:
        await store.put_token(made.stored)

    with token_output(out) as write:
        with_store(config, data_dir, put, makes=init)
        write(made.text)
    sys.stderr.write(f"{made.stored.token_id}\n")


@tokens.command("list", epilog=examples("arc-server token list", "arc-server token list -o wide"))
def list_tokens(
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List tokens, without their text"""

    async def read(store: TokenStore) -> list[TokenRow]:
        return [TokenRow.of(token) for token in await store.list_tokens()]

    rows = with_store(config, data_dir, read)
    print_list(rows, _COLUMNS, TokenRow.cells, output=output, as_json=as_json)


@tokens.command("revoke", epilog=examples("arc-server token revoke tok_7f3a"))
def revoke_token(
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="The token's id, or the beginning of it")
    ],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke a token; a running server refuses it within seconds"""

    async def ids(store: TokenStore) -> list[str]:
        return [token.token_id for token in await store.list_tokens()]

    async def revoke(store: TokenStore, whole: str) -> bool:
        return await store.revoke_token(whole, datetime.now(UTC))

    revoke_by_prefix(config, data_dir, token_id, "token", ids=ids, revoke=revoke)
