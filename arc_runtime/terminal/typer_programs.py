"""The programs that typer parses, with the house's help and errors in place of typer's own.

app = Program("arc", about="Send commands", epilog=examples("arc list"))

@app.command("list", epilog=examples("arc list --state failed"))
def list_commands() -> None: ...
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from arc_runtime.terminal.errors import print_error
from arc_runtime.terminal.help_page import help_page
from arc_runtime.terminal.suggestions import no_such, not_one_of

UNUSABLE: Final = 2
"""The exit code of a command line that is wrong."""

_F = TypeVar("_F", bound=Callable[..., Any])
_RANGE: Final = re.compile(r"(; )?\d*<?=?x[<>]=?\d+")
_NO_CHOICE: Final = re.compile(r"'(.*)' is not one of (.*)\.", re.DOTALL)
_QUOTED: Final = re.compile(r"'([^' ]+)'")
_REWORDED: Final = (
    (re.compile(r"'(.*)' is not a valid (int|float).*", re.DOTALL), r"\1 is not a number"),
    (re.compile(r"(.*) is not in the range x>=(.*)\."), r"\1 is less than \2"),
    (re.compile(r"got unexpected extra argument\(s\) \((.*)\)"), r"too many arguments: \1"),
)
"""The parser's messages that read badly, and what is said in their place."""


class Program(typer.Typer):
    """A program, or a group of its commands."""

    def __init__(self, name: str, *, about: str, epilog: str = "") -> None:
        super().__init__(
            name=name,
            cls=HousedGroup,
            help=about,
            epilog=epilog,
            context_settings={"help_option_names": ["-h", "--help"]},
            add_completion=False,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
        )

    def command(  # pyright: ignore[reportIncompatibleMethodOverride]  # the rest is not for us
        self, name: str | None = None, *, epilog: str = "", **settings: Any
    ) -> Callable[[_F], _F]:
        """Make a command of a function. `epilog`: its examples."""
        return super().command(name, cls=HousedCommand, epilog=epilog, **settings)


class HousedCommand(TyperCommand):
    """A command with the house's help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_page(self, ctx))


class HousedGroup(TyperGroup):
    """A group of commands with the house's help and errors."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_page(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help on stderr when there is no command. Raises typer.Exit then."""
        if not args and not self.invoke_without_command:
            sys.stderr.write(_page(self, ctx))
            raise typer.Exit(UNUSABLE)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is named. Raises typer.BadParameter for an unknown one."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise _NoSuchCommand(no_such("command", name, self.list_commands(ctx)), ctx=ctx)
        return super().resolve_command(ctx, args)

    def main(  # pyright: ignore[reportIncompatibleMethodOverride]  # they are all passed on
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **settings: Any,
    ) -> Any:
        """Run the command line, and exit. A wrong one is an error in the house's form."""
        try:
            settings["standalone_mode"] = False
            code = super().main(args, prog_name or self.name, **settings)
        except typer.TyperException as error:
            ctx = getattr(error, "ctx", None)
            steps = [f"See {ctx.command_path} --help"] if ctx is not None else []
            print_error(_what(error), next_steps=steps)
            code = UNUSABLE
        except typer.Abort:
            code = 1
        sys.exit(code if isinstance(code, int) else 0)


class _NoSuchCommand(typer.BadParameter):
    """A command that is not there, in its own words."""


def _page(command: TyperCommand | TyperGroup, ctx: Any) -> str:
    """Return the help of a command."""
    sections: dict[str, list[tuple[str, str]]] = {}
    arguments: list[str] = []
    if isinstance(command, TyperGroup):
        names = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
        sections["Commands"] = [(name, _first_line(each)) for name, each in names if each]
        arguments.append("COMMAND")
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None:
            continue
        text = _RANGE.sub("", record[1]).replace(" []", "").replace("; ]", "]")
        if param.param_type_name == "argument":
            name = _metavar(param)
            arguments.append(name if param.required else f"[{name}]")
            sections.setdefault("Arguments", []).append((name, text.replace("  [required]", "")))
            continue
        title = getattr(param, "rich_help_panel", None) or "Options"
        if "--help" in param.opts:
            text = "Show this help"
        sections.setdefault(title, []).append((_term(param), text))
    options = sections.pop("Options")  # there is --help at least
    usage = " ".join([ctx.command_path, "[OPTIONS]", *arguments])
    ordered = {
        name: sections.pop(name) for name in ("Arguments", "Commands") if name in sections
    } | {"Options": options}
    return help_page(usage, command.help or "", ordered | sections, epilog=command.epilog or "")


def _first_line(command: Any) -> str:
    return (command.help or "").partition("\n\n")[0]


def _term(option: Any) -> str:
    """Return an option as one types it: `-o, --output FORMAT`."""
    names = sorted([*option.opts, *option.secondary_opts], key=len)
    return ", ".join(names) + ("" if option.is_flag else f" {_metavar(option)}")


def _metavar(param: Any) -> str:
    """Return the placeholder of a value: its own, the choices, or the name in capitals."""
    if param.metavar:
        return str(param.metavar)
    choices = getattr(param.type, "choices", None)
    if choices:
        return "|".join(str(getattr(each, "value", each)) for each in choices)
    return str(param.name).upper().replace("_", "-")


def _what(error: typer.TyperException) -> str:
    """Return what is wrong with a command line, in the words of the house."""
    if isinstance(error, _NoSuchCommand):
        return error.message
    name = getattr(error, "option_name", None)
    if isinstance(name, str) and hasattr(error, "possibilities"):
        ctx: Any = getattr(error, "ctx", None)
        known = [option for param in ctx.command.get_params(ctx) for option in param.opts]
        return no_such("option", name, known)
    param: Any = getattr(error, "param", None)
    if param is None:  # a refusal of our own names its option
        is_own = isinstance(error, typer.BadParameter)
        hint = getattr(error, "param_hint", None)
        if isinstance(hint, str):
            return f"{hint}: {_reworded(error.message)}"
        text = error.message if is_own else error.format_message()
        return _reworded(text[:1].lower() + _QUOTED.sub(r"\1", text[1:]))
    named = max(param.opts, key=len) if param.param_type_name == "option" else _metavar(param)
    if not error.message:
        return f"{named} is missing"
    refused = _NO_CHOICE.fullmatch(error.message)
    if refused is not None:
        known = _QUOTED.findall(refused[2])
        return f"{named}: {not_one_of(refused[1], known)}"
    return f"{named}: {_reworded(error.message)}"


def _reworded(message: str) -> str:
    """Return a message of the parser's in better words, without a full stop."""
    for pattern, better in _REWORDED:
        message = pattern.sub(better, message)
    return message.removesuffix(".")
