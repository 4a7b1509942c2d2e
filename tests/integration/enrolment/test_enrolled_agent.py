"""An agent that enrolled, against a real server: renewal, outages, revocation, enrolling anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from arc_agent.agent import Agent
from arc_agent.net import access_token
from arc_agent.net.access_token import AccessToken
from arc_agent.net.token import TokenError
from arc_agent.work.live_config import LiveConfig, Source
from arc_protocol.enrolment import AccessTokenResponse
from tests.support.enrolment_host import EnrolmentHost, StartAgent, enrolment_host
from tests.support.waiting import until


def events(logged: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in logged if event["event"] == name]


def bearer(agent: Agent) -> AccessToken:
    """Its credential."""
    found = agent._live.token
    assert isinstance(found, AccessToken)
    return found


async def test_an_agent_that_enrolled_runs_commands_though_the_clocks_are_hours_apart(
    host: EnrolmentHost, start: StartAgent, logged: list[dict[str, Any]]
) -> None:
    await host.enrol()
    agent = await start(host)

    ended = await host.invoke()

    assert ended["state"] == "SUCCEEDED"
    status = bearer(agent).status()
    assert (status.state, status.reason) == ("good", None)
    assert status.token_ends_in_seconds is not None
    assert 3500 < status.token_ends_in_seconds <= 3600
    assert not events(logged, "contact.refused")


async def test_access_tokens_are_renewed_before_they_end(
    tmp_path: Path, start: StartAgent, logged: list[dict[str, Any]]
) -> None:
    async with enrolment_host(tmp_path, access_seconds=1) as host:
        await host.enrol()
        agent = await start(host)
        seen: set[str] = set()
        await until(lambda: seen.add(bearer(agent).value or "") or len(seen - {""}) >= 4)

        assert (await host.invoke())["state"] == "SUCCEEDED"

    assert not events(logged, "contact.refused")


@pytest.mark.parametrize("seconds", [0, -3600, 0.001])
async def test_a_server_whose_tokens_have_no_life_is_not_asked_without_a_pause(
    host: EnrolmentHost, start: StartAgent, seconds: float
) -> None:
    await host.enrol()
    token = bearer(await start(host))
    spoilt = AccessTokenResponse(
        token="t" * 40, expires_in_seconds=seconds, credential_id="c", deployment_id="d"
    )

    token._take(spoilt, 1000.0)

    assert token._due_at == 1000.5


async def test_keys_are_renewed_while_the_agent_works(
    tmp_path: Path, start: StartAgent, logged: list[dict[str, Any]]
) -> None:
    async with enrolment_host(
        tmp_path, access_seconds=1, key_seconds=1, key_overlap_seconds=0
    ) as host:
        await host.enrol()
        await start(host)
        await until(lambda: len(events(logged, "credential.new_key")) >= 4)  # each said twice

        assert (await host.invoke())["state"] == "SUCCEEDED"

    assert not events(logged, "contact.refused")


async def test_a_server_that_is_away_past_the_end_of_the_token_is_found_again(
    tmp_path: Path, start: StartAgent, logged: list[dict[str, Any]]
) -> None:
    async with enrolment_host(tmp_path, access_seconds=1) as host:
        await host.enrol()
        agent = await start(host)
        assert (await host.invoke())["state"] == "SUCCEEDED"
        listen = urlsplit(host.server.url).netloc
    await until(lambda: (bearer(agent).status().token_ends_in_seconds or 0) < -0.5)

    async with enrolment_host(tmp_path, listen, access_seconds=1) as host:
        assert (await host.invoke())["state"] == "SUCCEEDED"
        await until(lambda: bearer(agent).status().state == "good")
    assert not events(logged, "credential.revoked")


async def test_a_revoked_agent_says_so_once_keeps_its_results_and_is_mended_by_enrolling_anew(
    host: EnrolmentHost,
    start: StartAgent,
    logged: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access_token, "_REFUSED_SECONDS", (0.1, 0.2))
    await host.enrol()
    agent = await start(host)
    announcements = host.server.parts.services.announcements
    assert (await host.invoke())["state"] == "SUCCEEDED"
    await until(lambda: announcements.work.count == 1)

    await host.revoke()
    await until(lambda: bearer(agent).status().state == "refused", seconds=5)
    await until(lambda: len(events(logged, "contact.refused")) == 1)
    waiting = await host.invoke(seconds=1)

    assert waiting["state"] == "PENDING"
    assert announcements.work.count == 0
    [told] = events(logged, "credential.revoked")
    assert told["log_level"] == "error"
    assert "arc-agent enrol" in told["hint"]
    assert bearer(agent).status().reason == "this agent's credential was revoked"
    assert bearer(agent).value is None

    assert await host.enrol(replace=True) == 0
    assert (await host.invoke())["state"] == "SUCCEEDED"
    assert len(events(logged, "credential.revoked")) == 1
    assert len(events(logged, "contact.refused")) == 1


async def test_an_agent_that_is_turned_away_asks_seldom(
    host: EnrolmentHost, start: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    post = access_token._post

    async def count(connection: Any, name: str, message: Any, kind: Any) -> Any:
        asked.append(name)
        return await post(connection, name, message, kind)

    monkeypatch.setattr(access_token, "_post", count)
    await host.enrol()
    await host.revoke()

    agent = await start(host)
    await until(lambda: bearer(agent).status().state == "refused")
    for _ in range(20):  # the poller tries again and again, every 0.2 s at most
        with pytest.raises(access_token.Refused):
            await bearer(agent).ready()

    assert asked == ["challenges", "tokens"]


async def test_an_identity_for_another_deployment_stops_the_start(
    host: EnrolmentHost, tmp_path: Path
) -> None:
    await host.enrol()
    file = tmp_path / "agent.yaml"
    file.write_text(f"server: {{url: {host.server.url}}}\ndeployment: dep-2\n")
    source = Source(file=file, environ={}, overrides={"data_dir": str(host.directory)})

    with pytest.raises(TokenError, match=r"'dep-1'.*'dep-2'"):
        LiveConfig(source)


async def test_a_damaged_identity_stops_the_start_with_a_clear_line(
    host: EnrolmentHost, tmp_path: Path
) -> None:
    await host.enrol()
    (host.files.directory / "identity.json").write_bytes(b"{")
    file = tmp_path / "agent.yaml"
    file.write_text(f"server: {{url: {host.server.url}}}\ndeployment: dep-1\n")
    source = Source(file=file, environ={}, overrides={"data_dir": str(host.directory)})

    with pytest.raises(TokenError, match=r"identity\.json is damaged: enrol again"):
        LiveConfig(source)
