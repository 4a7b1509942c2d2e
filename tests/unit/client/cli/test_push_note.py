"""The note of `arc agents` about a deployment that is pushed to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from arc_client.cli.views import push_note
from arc_protocol.messages.agents import DeploymentPresence, PushCircuitInfo

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def presence(retry_in: float, reason: str = "HTTP 503") -> DeploymentPresence:
    circuit = PushCircuitInfo(
        since=NOW - timedelta(minutes=3), retry_at=NOW + timedelta(seconds=retry_in), reason=reason
    )
    return DeploymentPresence(now=NOW, watched_since=NOW, is_pushed=True, push_circuit=circuit)


def test_a_push_url_that_answers_is_named_as_one() -> None:
    answering = DeploymentPresence(now=NOW, watched_since=NOW, is_pushed=True)

    assert push_note("acme", answering) == "commands of acme are pushed to a URL"


@pytest.mark.parametrize(
    ("retry_in", "following"), [(20, "the next try is in 20s"), (-1, "it is being tried")]
)
def test_one_that_does_not_answer_says_why_and_what_comes_next(
    retry_in: float, following: str
) -> None:
    assert push_note("acme", presence(retry_in)) == (
        f"the push URL of acme has not answered for 3m (HTTP 503); {following}"
    )


def test_a_reason_cannot_command_the_terminal() -> None:
    assert "\x1b" not in push_note("acme", presence(1, "\x1b[31mred"))
