"""Outputs on a page and at a terminal are equal but for the parts that differ each time.

`…` on a page stands for any characters of its line, and a line of `…` alone for any lines. Indented
lines belong to the one before: where a terminal wraps depends on the length of the machine's paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

ANYTHING = "…"
_DURATION = r"\d+(?:\.\d+)? ?(?:µs|ms|s|min|m|h|d)\b"
_IDS = re.compile(r"\b(?:cmd|tok|cred|enr)_[a-z0-9]{4,}\b")
_WRAPPED = re.compile(r"(?<=\S)\n[ \t]+(?=\S)")
VOLATILE: Sequence[tuple[str, str]] = (
    (r"\b(cmd|lease|tok|cred|enr)_(?:[0-9a-f]{8}_)?[a-z0-9]{4,}\b", r"\1_#"),
    (r"\barc_(enrol_|access_)?[A-Za-z0-9_-]{30,}", r"arc_\1#"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d| UTC)?", "<instant>"),
    (r"\b\d\d:\d\d(:\d\d(\.\d+)?)?\b", "<time>"),
    (rf"\b{_DURATION}(?: {_DURATION})*", "<duration>"),
    (r"\bin <duration>|<duration> ago|\bjust now\b|\bnow\b", "<duration>"),
    (r"\b[0-9a-f]{32,}\b", "<digest>"),
    (r"\b\d+(\.\d+)? [KMGT]i?B\b", "<size>"),
    (r"\bpid \d+", "pid #"),
    (r"\bseconds=\d+(\.\d+)?", "seconds=#"),
    (r"\b\d+ (done|lines)\b", r"# \1"),
    (r"(?:\d+\.){3}\d+(?![:\d])|::1\b", "<ip>"),
    (r"<ip>(, <ip>)+", "<ip>"),
    (r"(?<=[a-zA-Z0-9])-[0-9a-f]{16}\b", "-<boot>"),
    (r"^(?:ok|BAD|-) +unit .*", "<unit>"),
    (r"[ \t]+", " "),
    (r"[─━]{2,}", "──"),
)
"""Patterns of what differs from run to run, and what stands for it in a comparison."""


class Words:
    """The names of a page and of the machine that a test runs on, one for the other."""

    def __init__(self, names: Mapping[str, str], page: str) -> None:
        """Take the machine's name of each of the page's names.

        Where two of them are one on the machine, the one that stands first on the page is shown.
        """
        places = {name: page.find(name) % (len(page) + 1) for name in names}
        in_order = sorted(names, key=lambda name: (-len(names[name]), places[name]))
        self._names = {name: names[name] for name in in_order}

    def learn(self, shown: str, real: str) -> None:
        """Take the ids of an output that a page shows for the real ones, from here on."""
        theirs, ours = _IDS.findall(shown), _IDS.findall(real)
        if len(theirs) == len(ours):
            pairs = zip(theirs, ours, strict=True)
            self._names |= {name: real for name, real in pairs if name != real}

    def typed(self, text: str) -> str:
        """Return an example with the machine's names in place of the page's."""
        pattern = "|".join(map(re.escape, self._names))
        return re.sub(pattern, lambda found: self._names[found[0]], text)

    def shown(self, text: str) -> str:
        """Return an output with the page's names in place of the machine's."""
        for name, real in self._names.items():
            text = text.replace(real, name)
        return text


def is_shown(shown: str, real: str) -> bool:
    """Return True if a page shows an output as it is, up to what differs each time."""
    return re.fullmatch(_pattern(shown), "".join(f"{line}\n" for line in _lines(real))) is not None


def is_shown_within(shown: str, real: str) -> bool:
    """Return True if the lines of a page stand in an output, in their order."""
    lines = iter(_lines(real))
    return all(any(re.fullmatch(_line(line), each) for each in lines) for line in _lines(shown))


def refreshed(shown: str, real: str) -> str:
    """Return an output for the page; lines of the page that leave something open stay."""
    if is_shown(shown, real):
        return shown
    kept = [line for line in shown.splitlines() if ANYTHING in line]
    lines = [line.rstrip() for line in real.splitlines() if line.strip()]
    fitting = [[each for each in kept if is_shown(each, line)] for line in lines]
    return "".join(f"{(each or [line])[0]}\n" for line, each in zip(lines, fitting, strict=True))


def _lines(text: str) -> list[str]:
    return [_stable(line) for line in _WRAPPED.sub(" ", text).splitlines() if line.strip()]


def _stable(line: str) -> str:
    for pattern, name in VOLATILE:
        line = re.sub(pattern, name, line)
    return line.strip()


def _pattern(shown: str) -> str:
    return "".join(
        r"(?:.*\n)*" if line == ANYTHING else f"{_line(line)}\\n" for line in _lines(shown)
    )


def _line(line: str) -> str:
    return ".*".join(map(re.escape, line.split(ANYTHING)))
