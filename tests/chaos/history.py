"""The history holds the clients' requests and their answers; the checker reads nothing else.

One event is one request. `ok`: a 200 and its answer. `fail`: a definite refusal (4xx), with its
code. `unknown`: the connection broke, or a 5xx; the request may have taken effect or not, at any
time since it was sent. Instants are of the clients' monotonic clock, in seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TERMINAL = frozenset({"SUCCEEDED", "FAILED", "EXPIRED"})


@dataclass(frozen=True, slots=True)
class Event:
    """One request. What `asked` and `answer` hold for each kind of it, the checker's rules tell."""

    kind: str
    asked: Mapping[str, Any]
    invoked: float
    returned: float = math.inf
    """Infinite for an unknown outcome."""
    outcome: str = "unknown"
    answer: Mapping[str, Any] | None = None
    code: str = ""
    """Why it was refused."""
    who: str = ""


class History:
    """Events, in the order in which they ended."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def begin(self, who: str, kind: str, **asked: Any) -> Open:
        """A request goes out now."""
        return Open(self, who, kind, asked)

    def save(self, file: Path) -> None:
        """One event a line."""
        file.write_text("".join(json.dumps(asdict(event)) + "\n" for event in self.events))

    def about(self, word: str) -> list[str]:
        """For people: all that mentions a command (or a lease of it) or a key, in order."""
        words = {word} | {
            lease["lease"]
            for event in self.events
            if event.kind == "lease" and event.answer is not None
            for lease in event.answer["leases"]
            if lease["id"] == word
        }
        found = [event for event in self.events if any(word in str(event) for word in words)]
        return [
            f"{event.invoked:.3f}–{event.returned:.3f} {event.who} {event.kind} {dict(event.asked)}"
            f" → {event.outcome} {event.code or _only(word, event.answer)}"
            for event in sorted(found, key=lambda each: each.invoked)
            if event.kind != "list"
        ]


class Open:
    """A request whose outcome is not known yet. Exactly one of its methods is to be called."""

    def __init__(self, history: History, who: str, kind: str, asked: Mapping[str, Any]) -> None:
        self._history = history
        self._parts = (kind, asked, time.monotonic())
        self._who = who

    def ok(self, **answer: Any) -> None:
        """The request took effect."""
        self._add(Event(*self._parts, time.monotonic(), "ok", answer, who=self._who))

    def fail(self, code: str) -> None:
        """The request was refused."""
        self._add(Event(*self._parts, time.monotonic(), "fail", None, code, self._who))

    def unknown(self) -> None:
        """The outcome is unknown."""
        self._add(Event(*self._parts, who=self._who))

    def _add(self, event: Event) -> None:
        self._history.events.append(event)


def _only(word: str, answer: Mapping[str, Any] | None) -> Any:
    """An answer, of leases only those of one command."""
    if answer is None or "leases" not in answer:
        return answer
    return [lease for lease in answer["leases"] if word in str(lease)]


def digest(data: bytes) -> str:
    """A body as histories hold it."""
    return hashlib.sha256(data).hexdigest()[:16]
