"""The state of the server: contact lost and back, and the extensions that it knows."""

from __future__ import annotations

import pytest
import structlog

from arc_agent.net.server_state import ServerState
from tests.support.clocks import AgentClock


@pytest.fixture
def clock() -> AgentClock:
    return AgentClock()


@pytest.fixture
def state(clock: AgentClock) -> ServerState:
    return ServerState(clock)


def test_contact_is_lost_once_and_back_once(state: ServerState) -> None:
    returns: list[int] = []
    state.on_back(lambda: returns.append(state.epoch))

    with structlog.testing.capture_logs() as events:
        for channel in ("lease", "renew", "submit", "lease"):
            state.failed(channel, "refused")
        state.succeeded("renew")
        state.succeeded("lease")

    assert [event["event"] for event in events] == ["contact.lost", "contact.back"]
    assert returns == [1]
    assert not state.is_lost


def test_success_of_a_channel_that_never_failed_does_not_bring_contact_back(
    state: ServerState,
) -> None:
    state.failed("submit", "refused")

    with structlog.testing.capture_logs() as events:
        state.succeeded("lease")

    assert events == []
    assert state.is_lost


def test_one_failing_channel_is_about_one_request_only(state: ServerState) -> None:
    state.failed("submit", "refused")
    assert not state.fails_beyond("submit")

    state.failed("lease", "refused")

    assert state.fails_beyond("submit")


def test_a_refusal_is_logged_as_one(state: ServerState) -> None:
    with structlog.testing.capture_logs() as events:
        state.failed("lease", "timed out")
        state.failed("lease", "401", is_refusal=True)
        state.failed("lease", "401", is_refusal=True)

    assert [event["event"] for event in events] == ["contact.lost", "contact.refused"]


def test_the_trouble_has_a_reason_and_lasts_from_the_first_failure(
    state: ServerState, clock: AgentClock
) -> None:
    assert state.trouble() is None

    state.failed("lease", "timed out")
    clock.now += 5
    state.failed("renew", "cut")

    assert state.trouble() == ("cut", 5.0)


def test_the_return_of_contact_counts_the_commands_that_ended_meanwhile(
    state: ServerState, clock: AgentClock
) -> None:
    assert not state.count_ended()
    state.failed("lease", "timed out")
    assert state.count_ended()
    assert state.count_ended()
    clock.now += 60

    with structlog.testing.capture_logs() as events:
        state.succeeded("lease")

    assert events[0]["commands_ended_meanwhile"] == 2
    assert events[0]["after_seconds"] == 60
    assert state.answered_at == clock.now


def test_an_extension_that_a_server_lacks_is_tried_again_after_contact_was_lost(
    state: ServerState,
) -> None:
    with structlog.testing.capture_logs() as events:
        state.lacks("renewal")
        state.lacks("renewal")
    assert [event["extension"] for event in events] == ["renewal"]
    assert not state.supports("renewal")
    assert state.supports("agents")

    state.failed("lease", "refused")
    state.succeeded("lease")

    assert state.supports("renewal")
