"""The programs that argparse parses, with the house's help and errors in place of its own.

The agent keeps its parsers in memory as long as it lives: what shows help and errors is loaded when
it is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

UNUSABLE: Final = 2
"""The exit code of a command line that is wrong."""


class Parser(argparse.ArgumentParser):
    """A parser with the house's help and errors; its subparsers are of this class too.

    `epilog`: examples, by help_page.examples.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings, add_help=False)
        self.add_argument("-h", "--help", action="help", help="Show this help")

    def format_help(self) -> str:
        from arc_runtime.terminal.help_page import help_page

        commands: list[tuple[str, str]] = []
        arguments: list[tuple[str, str]] = []
        options: list[tuple[str, str]] = []
        usage = [self.prog, "[OPTIONS]"]
        for action in self._actions:
            if action.help == argparse.SUPPRESS:
                continue
            text = (action.help or "") % {"default": action.default, "prog": self.prog}
            if isinstance(action.choices, dict):  # of subparsers
                usage.append("COMMAND")
                listed: Any = action
                commands += [(each.dest, each.help or "") for each in listed._get_subactions()]
            elif action.option_strings:
                options.append((_term(action), text))
            else:
                arguments.append((_metavar(action), text))
                usage.append(_metavar(action) if action.required else f"[{_metavar(action)}]")
        options.sort(key=lambda option: "--help" in option[0])  # the last, as elsewhere
        return help_page(
            " ".join(usage),
            self.description or "",
            {"Arguments": arguments, "Commands": commands, "Options": options},
            epilog=self.epilog or "",
        )

    def format_usage(self) -> str:
        return self.format_help().partition("\n\n")[0] + "\n"

    def parse_known_args(  # type: ignore[override]  # argparse's stub has overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and refuse what is unknown here and not in the outermost parser."""
        given = sys.argv[1:] if args is None else args
        if not given and any(isinstance(each.choices, dict) for each in self._actions):
            sys.stderr.write(self.format_help())
            raise SystemExit(UNUSABLE)
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0])
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Write an error in the house's form, and exit."""
        from arc_runtime.terminal.errors import print_error

        what = message.removeprefix("argument ")
        missing = what.removeprefix("the following arguments are required: ")
        if missing != what:
            what = f"{missing} {'are' if ', ' in missing else 'is'} missing"
        print_error(what, next_steps=[f"See {self.prog} --help"])
        raise SystemExit(UNUSABLE)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError for a command or a value that is not one of those there are."""
        if action.choices is None or value in action.choices:
            return
        from arc_runtime.terminal.suggestions import no_such, not_one_of

        known = [str(each) for each in action.choices]
        if isinstance(action.choices, dict):
            raise argparse.ArgumentError(None, no_such("command", str(value), known))
        raise argparse.ArgumentError(action, not_one_of(str(value), known))

    def _refuse(self, word: str) -> NoReturn:
        """Refuse an argument that no parser knows."""
        from arc_runtime.terminal.suggestions import no_such

        if not word.startswith("-"):
            self.error(f"too many arguments: {word}")
        name = word.partition("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        self.error(no_such("option", name, known))


def _term(action: argparse.Action) -> str:
    """Return an option as one types it: `-c, --config FILE`."""
    names = ", ".join(sorted(action.option_strings, key=len))
    return names if action.nargs == 0 else f"{names} {_metavar(action)}"


def _metavar(action: argparse.Action) -> str:
    """Return the placeholder of a value: its own, the choices, or the name in capitals."""
    if action.metavar is not None:
        return str(action.metavar)
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.dest.upper().replace("_", "-")
