"""Messages to a person break between words where the lines of a terminal end.

In a pipe they stay as they are: a program reads lines, and a log has a width of its own.
"""

from __future__ import annotations

from typing import IO, Any

from arc_runtime.terminal.styles import is_terminal, width_of_terminal


def wrapped(text: str, stream: IO[Any], *, indent: int = 2) -> str:
    """Return a line of text with line feeds between its words, as wide as the terminal `stream`.

    The further lines are indented by `indent` cells more than the first. Ids, paths and URLs stay
    whole. The text is as it was if it fits, or if the stream is no terminal.
    """
    if not is_terminal(stream):
        return text
    width = width_of_terminal(stream)
    if len(text) <= width:  # spaces that align it stay
        return text
    import textwrap

    return textwrap.fill(
        text,
        width,
        subsequent_indent=" " * (len(text) - len(text.lstrip()) + indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
