"""`arc-server keys`: the keys that sign URLs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from arc_server.app import KEYS, CannotStart
from arc_server.cli.database import ConfigOption, DataDirOption, JsonOption, config_here, show
from arc_server.config.parts import max_url_seconds
from arc_server.server_keys import FILE_NAME, read_keys, rotate

KEY_SLACK_SECONDS: Final = 3600
"""Kept on top of the life of a retired key's URLs: a server may sign with it until it notices."""

keys = typer.Typer(no_args_is_help=True, help="List and rotate the keys that sign URLs")


@keys.command("rotate")
def rotate_keys(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    forget_older: Annotated[
        bool,
        typer.Option("--forget-older", help="Remove older keys and the URLs they signed"),
    ] = False,
) -> None:
    """Sign with a new key, and print its id; URLs that are out stay good"""
    loaded = config_here(config, data_dir)
    keep = timedelta(seconds=max_url_seconds(loaded) + KEY_SLACK_SECONDS)
    try:
        now_in_use = rotate(
            loaded.data_dir / KEYS, datetime.now(UTC), keep, forget_older=forget_older
        )
    except OSError as error:
        raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None
    sys.stdout.write(f"{now_in_use[0].id}\n")


@keys.command("list")
def list_keys(
    config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """List the keys without their secrets, the one that signs first"""
    loaded = config_here(config, data_dir)
    try:
        found = read_keys(loaded.data_dir / KEYS / FILE_NAME)
    except OSError as error:
        raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None
    rows = [{"id": key.id, "created": key.created_at, "retired": key.retired_at} for key in found]
    show(rows, "id", "created", "retired", as_json=as_json)
