"""`arc-server token`: bearer tokens, and what each is bound to."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import typer

from arc_protocol.errors import Conflict
from arc_protocol.messages.base import CommandTarget
from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.prefixes import id_of
from arc_runtime.terminal.table import Cell, Column
from arc_runtime.terminal.typer_programs import Program
from arc_server.auth.tokens import Scope, new_secret, new_token
from arc_server.cli.bounds import TargetOption, end_of, named, patterns, target_of
from arc_server.cli.database import (
    ConfigOption,
    DataDirOption,
    InitOption,
    revoke_by_prefix,
    with_store,
)
from arc_server.cli.listing import JsonOption, Output, OutputOption, print_list
from arc_server.cli.token_file import OutOption, token_output
from arc_server.ports.credentials import TokenStore
from arc_server.ports.records import BearerToken

tokens = Program(
    "token",
    about="Create, list, rotate and revoke bearer tokens",
    epilog=examples("arc-server token create --scope admin", "arc-server token list"),
)

_COLUMNS: Final = (
    Column("ID"),
    Column("NAME", rank=5),
    Column("SCOPE"),
    Column("DEPLOYMENTS", rank=1),
    Column("STATE", is_state=True),
    Column("USED", rank=3),
    Column("EXPIRES", rank=4),
    Column("CREATED", rank=2),
    Column("COMMANDS", is_wide=True),
    Column("TARGET", is_wide=True),
    Column("AGENT", is_wide=True),
    Column("BY", is_wide=True),
    Column("REVOKED", is_wide=True),
)


class TokenRow(msgspec.Struct, frozen=True):
    """A token as a list shows it, without its hash."""

    id: str
    name: str
    scope: str
    deployments: list[str] | None
    commands: list[str] | None
    target: str | None
    agent: str | None
    created: datetime
    by: str
    used: datetime | None
    expires: datetime | None
    revoked: datetime | None

    @classmethod
    def of(cls, token: BearerToken) -> TokenRow:
        """Return the row of a token."""
        return cls(
            token.token_id,
            token.name,
            token.scope,
            None if token.deployments is None else list(token.deployments),
            None if token.commands is None else list(token.commands),
            None if token.target is None else token.target.resource_id,
            token.agent_id,
            token.created_at,
            token.created_by,
            token.last_used_at,
            token.expires_at,
            token.revoked_at,
        )

    def cells(self) -> tuple[Cell, ...]:
        """Return the row of the table."""
        deployments, commands = ", ".join(self.deployments or ()), ", ".join(self.commands or ())
        return (
            self.id, self.name, self.scope, deployments, self._state, self.used, self.expires,
            self.created, commands, self.target, self.agent, self.by, self.revoked,
        )  # fmt: skip

    @property
    def _state(self) -> str:
        if self.revoked is not None:
            return "revoked"
        is_over = self.expires is not None and self.expires <= datetime.now(UTC)
        return "expired" if is_over else "active"


@tokens.command(
    "create",
    epilog=examples(
        "arc-server token create --scope sender --deployment acme-eu-1 --out s.token",
        "arc-server token create --scope agent --deployment acme-eu-1 --out a.token",
        "arc-server token create --scope sender --deployment 'acme-*' --expires 30d",
        "arc-server token create --scope admin --init --data-dir ./data",
    ),
)
def create_token(
    scope: Annotated[Scope, typer.Option(help="Rights of the token")],
    deployment: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Bind the token to deployments, such as acme-*"),
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Bind the token to commands, such as reports.*"),
    ] = None,
    target: TargetOption = None,
    agent_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Bind an agent's token to one agent id")
    ] = None,
    name: Annotated[str, typer.Option(metavar="TEXT", help="What the token is for")] = "",
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Life of the token: 1h, 30d, …")
    ] = None,
    out: OutOption = None,
    init: InitOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Create a token and print it, once"""
    deployments = patterns("--deployment", deployment or ())
    commands = patterns("--command", command or ())
    bound_to = target_of(target)
    if agent_id is not None:
        agent_id = named("--agent-id", agent_id)
    _check_bounds(scope, deployments, commands, bound_to, agent_id)
    now = datetime.now(UTC)
    made = new_token(
        scope,
        deployments,
        now,
        commands=commands,
        target=bound_to,
        agent_id=agent_id,
        name=named("--name", name) if name else "",
        created_by=user_name(),
        expires_at=end_of("--expires", expires, now),
    )

    async def put(store: TokenStore) -> None:
        await store.put_token(made.stored, made.secret)

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


@tokens.command("rotate", epilog=examples("arc-server token rotate tok_7f3a --out s.token"))
def rotate_token(
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="The token's id, or the beginning of it")
    ],
    overlap: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the former secret stays good")
    ] = "24h",
    out: OutOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give a token a new secret and print it, once"""
    now = datetime.now(UTC)
    older_end_at = end_of("--overlap", overlap, now) or now

    async def rotate(store: TokenStore) -> tuple[str, str]:
        known = {token.token_id: token for token in await store.list_tokens()}
        token = known[id_of(token_id, list(known), "token")]
        if token.revoked_at is not None:
            raise Conflict(f"{token.token_id} was revoked: create another token")
        text, secret = new_secret(token.scope, token.token_id, now)
        await store.rotate_token(secret, older_end_at)
        return text, token.token_id

    with token_output(out) as write:
        text, whole = with_store(config, data_dir, rotate)
        write(text)
    sys.stderr.write(f"{whole}\n")


def user_name() -> str:
    """Return the name of the user who runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without an entry in the password database
        return str(os.getuid())


def _check_bounds(
    scope: Scope,
    deployments: Sequence[str] | None,
    commands: Sequence[str] | None,
    target: CommandTarget | None,
    agent_id: str | None,
) -> None:
    """Raise BadParameter for bounds that tokens of the scope do not have."""
    if scope is Scope.ADMIN and deployments is not None:
        raise typer.BadParameter("an admin token is bound to no deployment")
    if scope in (Scope.ADMIN, Scope.AGENT) and commands is not None:
        raise typer.BadParameter(f"--command: not for tokens of scope {scope}")
    if scope is not Scope.AGENT:
        if target is not None or agent_id is not None:
            raise typer.BadParameter("--target, --agent-id: for tokens of scope agent only")
        return
    if deployments is not None and (len(deployments) > 1 or "*" in deployments[0]):
        raise typer.BadParameter("--deployment: an agent's token is bound to one by name")
    if deployments is None and (target is not None or agent_id is not None):
        raise typer.BadParameter("--target, --agent-id: name the --deployment too")


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
