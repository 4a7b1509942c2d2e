"""`arc-server deployment`: the deployments, and where their commands are pushed to."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
import typer

from arc_protocol.urls import redact
from arc_runtime.directories import kept_by_owner
from arc_runtime.network.allowed_hosts import HostRefused
from arc_runtime.network.loopback import is_loopback
from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.prefixes import PrefixError
from arc_runtime.terminal.table import Cell, Column, print_note, print_table
from arc_runtime.terminal.typer_programs import Program
from arc_server.app import KEYS, CannotStart
from arc_server.cli.bounds import named
from arc_server.cli.database import ConfigOption, DataDirOption, config_here, with_store
from arc_server.cli.listing import JsonOption, Output, OutputOption, print_list
from arc_server.cli.tokens import user_name
from arc_server.config.reading import is_http_url, push_hosts
from arc_server.config.sections import ServerConfig
from arc_server.ports.deployments import DeploymentStore
from arc_server.ports.records import Deployment
from arc_server.ports.store import Store
from arc_server.push.push_tokens import PushTokens

deployments = Program(
    "deployment",
    about="List, show and remove deployments, and set the URLs for their commands",
    epilog=examples("arc-server deployment list", "arc-server deployment show acme-eu-1"),
)

_COLUMNS: Final = (
    Column("DEPLOYMENT"),
    Column("TARGETS"),
    Column("DEFAULT", rank=1),
    Column("PUSH", rank=3),
    Column("PUSHED TO", rank=2, is_text=True),
)

DeploymentArgument = Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Deployment")]


class DeploymentRow(msgspec.Struct, frozen=True):
    """A deployment as it is shown, without its push token."""

    deployment: str
    targets: list[str]
    default_target: str | None
    push_url: str | None
    has_push_token: bool
    set_by: str | None
    """The user who set the push URL; None without one."""
    push_state: str | None
    """ok, paused (the URL does not answer) or trying again; None without a push URL."""
    failing_since: datetime | None
    next_try: datetime | None
    reason: str | None

    @classmethod
    def of(cls, deployment: Deployment, now: datetime) -> DeploymentRow:
        """Return the row of a deployment."""
        circuit, url = deployment.circuit, deployment.push_url
        state = "ok" if circuit is None else "paused" if now < circuit.retry_at else "trying again"
        return cls(
            deployment.deployment_id,
            [target.resource_id for target in deployment.targets],
            deployment.default_target_id,
            None if url is None else redact(url),
            deployment.push_token is not None,
            None if url is None else deployment.push_by or "the configuration",
            None if url is None else state,
            None if circuit is None else circuit.opened_at,
            None if circuit is None else circuit.retry_at,
            None if circuit is None else circuit.reason,
        )

    def cells(self) -> tuple[Cell, ...]:
        """Return the row of the table."""
        targets = str(len(self.targets))
        return self.deployment, targets, self.default_target, self.push_state, self.push_url


@deployments.command(
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
        now = datetime.now(UTC)
        return [DeploymentRow.of(each, now) for each in await store.list_deployments()]

    rows = with_store(config, data_dir, read)
    print_list(rows, _COLUMNS, DeploymentRow.cells, output=output, as_json=as_json)


@deployments.command("show", epilog=examples("arc-server deployment show acme-eu-1 --json"))
def show_deployment(
    deployment: DeploymentArgument,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show a deployment, and whether its push URL answers"""

    async def read(store: DeploymentStore) -> Deployment | None:
        return await store.get_deployment(deployment)

    found = with_store(config, data_dir, read)
    if found is None:
        raise PrefixError(f"there is no deployment {deployment}")
    row = DeploymentRow.of(found, datetime.now(UTC))
    if as_json:
        sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return
    facts = {
        "deployment": row.deployment,
        "targets": ", ".join(row.targets),
        "default target": row.default_target,
        "push url": row.push_url,
        "push token": "set" if row.has_push_token else None,
        "set by": row.set_by,
        "push": row.push_state,
        "failing since": row.failing_since,
        "next try": row.next_try,
        "reason": row.reason,
    }
    shown = [(name, value) for name, value in facts.items() if value]
    print_table([Column("FACT"), Column("VALUE")], shown)


@deployments.command(
    "set",
    epilog=examples("arc-server deployment set acme-1 --push-url https://w.example/arc"),
)
def set_push(
    deployment: DeploymentArgument,
    push_url: Annotated[
        str, typer.Option(metavar="URL", help="URL that commands are POSTed to, not leased")
    ],
    push_token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the bearer token for the URL; none without"),
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Push the commands of a deployment to a URL"""
    deployment = named("DEPLOYMENT", deployment)
    loaded = config_here(config, data_dir)
    _check_url(push_url, loaded)
    sealed = None
    if push_token_file is not None:
        token = _read_token(push_token_file)
        try:
            with kept_by_owner(loaded.data_dir):
                sealed = PushTokens(loaded.data_dir / KEYS).seal(deployment, token)
        except OSError as error:
            raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None
        parts = urlsplit(push_url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            print_note("the URL is not https: the token travels as plain text")

    async def put(store: DeploymentStore) -> bool:
        return await store.set_push(deployment, push_url, sealed, datetime.now(UTC), user_name())

    with_store(config, data_dir, put)
    print_note(f"commands of {deployment} are pushed to {redact(push_url)}")
    _warn_of_configuration(loaded, deployment)


@deployments.command("unset", epilog=examples("arc-server deployment unset acme-eu-1"))
def unset_push(
    deployment: DeploymentArgument,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let agents lease the commands of a deployment again"""

    async def put(store: DeploymentStore) -> bool:
        return await store.set_push(deployment, None, None, datetime.now(UTC))

    if not with_store(config, data_dir, put):
        raise PrefixError(f"there is no deployment {deployment}")
    print_note(f"commands of {deployment} are leased to agents")
    _warn_of_configuration(config_here(config, data_dir), deployment)


@deployments.command("remove", epilog=examples("arc-server deployment remove acme-eu-1"))
def remove_deployment(
    deployment: DeploymentArgument,
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
        raise PrefixError(f"there is no deployment {deployment}")
    print_note(f"{deployment} is removed")


def _check_url(url: str, config: ServerConfig) -> None:
    """Raise BadParameter for a URL that nothing can be pushed to."""
    if not is_http_url(url):
        raise typer.BadParameter("--push-url: must be an absolute http or https URL")
    try:
        push_hosts(config).check(url)
    except HostRefused as error:
        raise typer.BadParameter(f"--push-url: {error}") from None


def _read_token(file: Path) -> str:
    """Return the token of a file. Raises BadParameter."""
    try:
        token = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII text"
        raise typer.BadParameter(f"--push-token-file: {file}: {reason}") from None
    if not token or not token.isprintable() or " " in token:
        raise typer.BadParameter(f"--push-token-file: {file}: not a token alone on a line")
    return token


def _warn_of_configuration(config: ServerConfig, deployment: str) -> None:
    """Say so if the next start of the server sets another push URL."""
    if any(each.id == deployment and each.push_url is not None for each in config.deployments):
        print_note("the configuration has a push_url for it, which the next start sets again")
