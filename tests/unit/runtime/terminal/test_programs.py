"""Help and errors are alike, whichever parser reads the command line."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import pytest
import typer

from arc_runtime.terminal.argparse_programs import Parser
from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.typer_programs import Program


class Colour(StrEnum):
    """What the program paints in."""

    RED = "red"
    GREEN = "green"


def by_argparse(*words: str) -> int:
    root = Parser(prog="paint", description="Paint things", epilog=examples("paint wall north"))
    commands = root.add_subparsers(dest="command", required=True)
    wall = commands.add_parser(
        "wall",
        help="Paint a wall",
        description="Paint a wall",
        epilog=examples("paint wall north --colour red"),
    )
    wall.add_argument("which", metavar="WALL", help="The wall")
    wall.add_argument("--colour", choices=[*Colour], default=Colour.RED, help="Its colour")
    wall.add_argument("--coats", metavar="N", type=int, help="Coats of paint")
    wall.add_argument("-q", "--quiet", action="store_true", help="Paint without a noise")
    commands.add_parser("door", help="Paint a door")
    root.parse_args(words)
    return 0


def by_typer(*words: str) -> int:
    app = Program("paint", about="Paint things", epilog=examples("paint wall north"))

    @app.command(epilog=examples("paint wall north --colour red"))
    def wall(
        which: Annotated[str, typer.Argument(metavar="WALL", help="The wall")],
        colour: Annotated[Colour, typer.Option(help="Its colour", show_default=False)] = Colour.RED,
        coats: Annotated[int | None, typer.Option(metavar="N", help="Coats of paint")] = None,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Paint without a noise")] = False,
    ) -> None:
        """Paint a wall"""

    @app.command()
    def door() -> None:
        """Paint a door"""

    app(words)
    return 0


PROGRAMS = [by_argparse, by_typer]


def outcome(
    program: Callable[..., int], words: str, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(program(*words.split()))
    shown = capfd.readouterr()
    assert isinstance(ended.value.code, int | None)
    return ended.value.code or 0, shown.out, shown.err


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_help_of_a_program_lists_its_commands(
    program: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    page = """\
Usage: paint [OPTIONS] COMMAND

  Paint things

Commands:
  wall  Paint a wall
  door  Paint a door

Options:
  {}

Examples:
  paint wall north
"""
    option = "-h, --help  Show this help"

    assert outcome(program, "--help", capfd) == (0, page.format(option), "")
    assert outcome(program, "", capfd) == (2, "", page.format(option))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_help_of_a_command_has_arguments_options_and_examples(
    program: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "20")  # of the terminal that the pipe's reader may have

    assert outcome(program, "wall --help", capfd) == (
        0,
        """\
Usage: paint wall [OPTIONS] WALL

  Paint a wall

Arguments:
  WALL  The wall

Options:
  --colour red|green  Its colour
  --coats N           Coats of paint
  -q, --quiet         Paint without a noise
  -h, --help          Show this help

Examples:
  paint wall north --colour red
""",
        "",
    )


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("wal", "no such command: wal. Did you mean wall?\n  See paint --help"),
        ("wall", "WALL is missing\n  See paint wall --help"),
        ("wall a b", "too many arguments: b\n  See paint wall --help"),
        (
            "wall a --color red",
            "no such option: --color. Did you mean --colour?\n  See paint wall --help",
        ),
        (
            "wall a --colour gren",
            "--colour: gren is not one of red, green. Did you mean green?\n  See paint wall --help",
        ),
        (
            "wall a --colour 12345",
            "--colour: 12345 is not one of red, green\n  See paint wall --help",
        ),
        ("wall a --\x1b[2J", "no such option: --\\x1b[2J\n  See paint wall --help"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_where_the_help_is(
    program: Callable[..., int], words: str, error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert outcome(program, words, capfd) == (2, "", f"error: {error}\n")


def test_a_number_that_is_none_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    expected = "error: --coats: x is not a number\n  See paint wall --help\n"

    assert outcome(by_typer, "wall a --coats x", capfd) == (2, "", expected)
