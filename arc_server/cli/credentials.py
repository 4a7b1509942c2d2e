"""`arc-server enrol-token` and `arc-server credential`: who may enrol, and who did."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
import typer

from arc_protocol.messages.base import Name
from arc_runtime.durations import parse_duration
from arc_server.auth.enrolment import new_enrol_token
from arc_server.cli.store import ConfigOption, DataDirOption, JsonOption, print_table, with_store
from arc_server.ports.credentials import CredentialStore

FAILED: Final = 1
MAX_USES: Final = 100_000
MAX_EXPIRY: Final = timedelta(days=366)

enrol_tokens = typer.Typer(
    no_args_is_help=True, help="Leave for agents to enrol. Also while it runs."
)
credentials = typer.Typer(
    no_args_is_help=True, help="Agents that enrolled. Also while the server runs."
)


@enrol_tokens.command("create")
def create_enrol_token(
    deployment: Annotated[str, typer.Option(help="What the agents will be bound to.")],
    uses: Annotated[int, typer.Option(min=1, max=MAX_USES, help="How many agents it enrols.")] = 1,
    expires: Annotated[str, typer.Option(help="How long it is good: 1h, 30m, 7d.")] = "1h",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make an enrol token and print it: this is the only time that it can be seen."""
    try:
        msgspec.convert(deployment, Name)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(f"--deployment: {error}") from None
    try:
        expires_in = timedelta(seconds=parse_duration(expires))
    except ValueError as error:
        raise typer.BadParameter(f"--expires: {error}") from None
    if not timedelta() < expires_in <= MAX_EXPIRY:
        raise typer.BadParameter(f"--expires: more than nothing, at most {MAX_EXPIRY.days}d")
    made = new_enrol_token(deployment, uses, expires_in, datetime.now(UTC))

    async def put(store: CredentialStore) -> None:
        await store.put_enrol_token(made.stored)

    with_store(config, data_dir, put)
    sys.stdout.write(f"{made.text}\n")
    sys.stderr.write(f"{made.stored.token_id}\n")


@enrol_tokens.command("list")
def list_enrol_tokens(
    config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """List enrol tokens; never their text, which is not stored."""

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

    rows = with_store(config, data_dir, read, must_exist=True)
    _show(
        rows, ("id", "deployment", "uses", "used", "created", "expires", "revoked"), as_json=as_json
    )


@enrol_tokens.command("revoke")
def revoke_enrol_token(
    token_id: Annotated[str, typer.Argument(help="Its id, as `enrol-token list` shows it.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let nobody enrol with it any more. Agents that did stay: see `credential revoke`."""

    async def revoke(store: CredentialStore) -> bool:
        return await store.revoke_enrol_token(token_id, datetime.now(UTC))

    if not with_store(config, data_dir, revoke, must_exist=True):
        sys.stderr.write(f"arc-server: no such enrol token: {token_id}\n")
        raise typer.Exit(FAILED)


@credentials.command("list")
def list_credentials(
    config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """List the agents that enrolled."""

    async def read(store: CredentialStore) -> list[dict[str, Any]]:
        return [
            {
                "id": each.credential_id,
                "deployment": each.deployment_id,
                "hostname": each.hostname,
                "enrolled": each.enrolled_at,
                "by": each.enrol_token_id,
                "revoked": each.revoked_at,
            }
            for each in await store.list_credentials()
        ]

    rows = with_store(config, data_dir, read, must_exist=True)
    _show(rows, ("id", "deployment", "hostname", "enrolled", "by", "revoked"), as_json=as_json)


@credentials.command("revoke")
def revoke_credential(
    credential_id: Annotated[str, typer.Argument(help="Its id, as `credential list` shows it.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Turn an agent away: within seconds, also where it waits for work now."""

    async def revoke(store: CredentialStore) -> bool:
        return await store.revoke_credential(credential_id, datetime.now(UTC))

    if not with_store(config, data_dir, revoke, must_exist=True):
        sys.stderr.write(f"arc-server: no such credential: {credential_id}\n")
        raise typer.Exit(FAILED)


def _show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Rows as JSON or as a table."""
    if as_json:
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
        return
    print_table(rows, *columns)
