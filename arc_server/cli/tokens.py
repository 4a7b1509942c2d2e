"""`arc-server token`: bearer tokens."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from arc_server.auth.tokens import Scope, new_token
from arc_server.cli.database import (
    ConfigOption,
    DataDirOption,
    InitOption,
    JsonOption,
    checked_deployment,
    fail_unknown,
    show,
    with_store,
)
from arc_server.cli.token_file import OutOption, token_output
from arc_server.ports.credentials import TokenStore
from arc_server.ports.records import BearerToken

tokens = typer.Typer(no_args_is_help=True, help="Create, list and revoke bearer tokens")


@tokens.command("create")
def create_token(
    scope: Annotated[Scope, typer.Option(help="The rights of the token")],
    deployment: Annotated[str | None, typer.Option(help="Bind the token to one deployment")] = None,
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


@tokens.command("list")
def list_tokens(
    config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """List tokens, without their text"""

    async def read(store: TokenStore) -> list[dict[str, Any]]:
        return [_shown(token) for token in await store.list_tokens()]

    rows = with_store(config, data_dir, read)
    show(rows, "id", "scope", "deployment", "created", "revoked", as_json=as_json)


@tokens.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="The id of the token, as `token list` shows it")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke a token; a running server refuses it within seconds"""

    async def revoke(store: TokenStore) -> bool:
        return await store.revoke_token(token_id, datetime.now(UTC))

    if not with_store(config, data_dir, revoke):
        fail_unknown("token", token_id)


def _shown(token: BearerToken) -> dict[str, Any]:
    """Return the row of a token, without its hash."""
    return {
        "id": token.token_id,
        "scope": token.scope,
        "deployment": token.deployment_id,
        "created": token.created_at,
        "revoked": token.revoked_at,
    }
