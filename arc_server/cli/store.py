"""What the commands about the database share: their options, the database, and tables."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from arc_server.app import DATABASE, CannotStart, open_store
from arc_server.config.reading import load_config
from arc_server.ports.store import Store

R = TypeVar("R")

ConfigOption = Annotated[Path | None, typer.Option("--config", help="A configuration in YAML.")]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Overrides data_dir of the configuration.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]


def with_store(
    config: Path | None,
    data_dir: Path | None,
    use: Callable[[Store], Coroutine[Any, Any, R]],
    *,
    must_exist: bool = False,
) -> R:
    """Do something with the database, also while a server uses it. Raises CannotStart."""
    loaded = load_config(config, {"data_dir": data_dir})
    if must_exist and not (loaded.data_dir / DATABASE).exists():
        raise CannotStart(f"data_dir: {loaded.data_dir}: no database there")

    async def run() -> R:
        store = await open_store(loaded.data_dir, exclusive=False)
        try:
            return await use(store)
        finally:
            await store.close()

    return run_loop(run())


def run_loop(main: Coroutine[Any, Any, R]) -> R:
    """Run on uvloop where it is installed: half of what the event loop costs."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def print_table(rows: Sequence[Mapping[str, Any]], *columns: str) -> None:
    """Rows for people; instants to the second, in UTC."""
    table = Table(*columns)
    for row in rows:
        values = (row[column] for column in columns)
        table.add_row(
            *(
                f"{value:%Y-%m-%d %H:%M:%SZ}"
                if isinstance(value, datetime)
                else str("" if value is None else value)
                for value in values
            )
        )
    Console().print(table)
