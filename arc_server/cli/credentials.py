"""`arc-server credential`: the credentials of enrolled agents."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from arc_server.cli.database import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    fail_unknown,
    show,
    with_store,
)
from arc_server.ports.credentials import CredentialStore

credentials = typer.Typer(
    no_args_is_help=True, help="List and revoke the credentials of enrolled agents"
)


@credentials.command("list")
def list_credentials(
    config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """List the credentials of enrolled agents"""

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

    rows = with_store(config, data_dir, read)
    columns = ("id", "deployment", "hostname", "enrolled", "by", "revoked")
    show(rows, *columns, as_json=as_json)


@credentials.command("revoke")
def revoke_credential(
    credential_id: Annotated[
        str, typer.Argument(help="The id of the credential, as `credential list` shows it")
    ],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke a credential; a running server refuses the agent within seconds"""

    async def revoke(store: CredentialStore) -> bool:
        return await store.revoke_credential(credential_id, datetime.now(UTC))

    if not with_store(config, data_dir, revoke):
        fail_unknown("credential", credential_id)
