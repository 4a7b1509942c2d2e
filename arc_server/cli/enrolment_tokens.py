"""`arc-server enrol-token`: enrolment tokens, each good for a number of agents and a time."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from arc_runtime.durations import parse_duration
from arc_server.auth.enrolment import new_enrol_token
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
from arc_server.ports.credentials import CredentialStore

MAX_USES: Final = 100_000
MAX_EXPIRY: Final = timedelta(days=366)

enrolment_tokens = typer.Typer(
    no_args_is_help=True, help="Create, list and revoke enrolment tokens"
)


@enrolment_tokens.command("create")
def create_enrolment_token(
    deployment: Annotated[str, typer.Option(help="The deployment of the agents")],
    uses: Annotated[
        int, typer.Option(min=1, max=MAX_USES, help="The number of agents to enrol")
    ] = 1,
    expires: Annotated[
        str, typer.Option(help="The life of the token, such as 30m, 1h or 7d")
    ] = "1h",
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
    made = new_enrol_token(deployment, uses, expires_in, datetime.now(UTC))

    async def put(store: CredentialStore) -> None:
        await store.put_enrol_token(made.stored)

    with token_output(out) as write:
        with_store(config, data_dir, put, makes=init)
        write(made.text)
    sys.stderr.write(f"{made.stored.token_id}\n")


@enrolment_tokens.command("list")
def list_enrolment_tokens(
    config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """List enrolment tokens, without their text"""

    async def read(store: CredentialStore) -> list[dict[str, Any]]:
        return [
            {
                "id": token.token_id,
                "deployment": token.deployment_id,
                "uses": token.uses,
                "used": token.used,
                "created": token.created_at,
                "expires": token.expires_at,
                "revoked": token.revoked_at,
            }
            for token in await store.list_enrol_tokens()
        ]

    rows = with_store(config, data_dir, read)
    columns = ("id", "deployment", "uses", "used", "created", "expires", "revoked")
    show(rows, *columns, as_json=as_json)


@enrolment_tokens.command("revoke")
def revoke_enrolment_token(
    token_id: Annotated[
        str, typer.Argument(help="The id of the token, as `enrol-token list` shows it")
    ],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke an enrolment token; agents that enrolled with it stay"""

    async def revoke(store: CredentialStore) -> bool:
        return await store.revoke_enrol_token(token_id, datetime.now(UTC))

    if not with_store(config, data_dir, revoke):
        fail_unknown("enrolment token", token_id)
