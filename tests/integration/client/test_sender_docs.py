"""Every option of `arc invoke` stands in docs/sender.md."""

from __future__ import annotations

from pathlib import Path

from typer.main import get_command

from arc_client.cli.main import app

PAGE = (Path(__file__).parents[3] / "docs" / "sender.md").read_text()


def test_the_page_names_every_option_of_invoke() -> None:
    invoke = get_command(app).commands["invoke"]  # type: ignore[attr-defined]
    options = {flag for parameter in invoke.params for flag in parameter.opts if flag[:2] == "--"}

    assert {flag for flag in options if flag not in PAGE} == set()
