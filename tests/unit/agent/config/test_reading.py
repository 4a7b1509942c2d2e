"""The configuration: keys, bounds, and the variables of other receivers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arc_agent.config.addresses import base_url
from arc_agent.config.places import data_directory
from arc_agent.config.reading import read
from arc_runtime.config.settings import SettingsError

NEEDED = {"server.url": "https://arc.example.com", "deployment": "dep-1"}


@pytest.mark.parametrize(
    ("url", "base", "query"),
    [
        ("https://arc.example.com", "https://arc.example.com", ""),
        ("https://arc.example.com/", "https://arc.example.com", ""),
        ("https://arc.example.com/v1", "https://arc.example.com", ""),
        ("https://arc.example.com/v1/", "https://arc.example.com", ""),
        ("https://arc.example.com//v1//", "https://arc.example.com", ""),
        ("https://edge.example/tenant/v1", "https://edge.example/tenant", ""),
        ("https://edge.example/tenant-v1", "https://edge.example/tenant-v1", ""),
        ("https://edge.example/v1/tenant", "https://edge.example/v1/tenant", ""),
        ("http://127.0.0.1:8700/v1?key=a%20b", "http://127.0.0.1:8700", "?key=a%20b"),
        (" http://[::1]:8700 ", "http://[::1]:8700", ""),
    ],
)
def test_the_server_is_given_with_or_without_v1(url: str, base: str, query: str) -> None:
    assert base_url(url) == (base, query)


@pytest.mark.parametrize(
    "url", ["", "arc.example.com", "ftp://x", "https://", "https://user:pass@x", "http://x:0"]
)
def test_what_is_no_server_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"server\.url"):
        read(None, {"ARC_AGENT_SERVER_URL": url}, {"deployment": "dep-1"})


def test_plain_http_off_loopback_is_refused_unless_it_is_allowed() -> None:
    given = {"deployment": "dep-1", "server.url": "http://arc.example.com"}
    with pytest.raises(SettingsError, match="plain HTTP") as refused:
        read(None, {}, given)
    assert refused.value.key == "server.url"
    with pytest.raises(SettingsError, match="plain HTTP"):
        read(None, {"ALIEN_COMMANDS_URL": "http://10.0.0.1:80/v1"}, {"deployment": "dep-1"})

    assert read(None, {"ARC_AGENT_SERVER_ALLOW_HTTP": "true"}, given).server.allow_http
    for url in ("http://localhost:1", "http://127.0.0.9", "http://[::1]", "https://arc.example"):
        read(None, {}, given | {"server.url": url})


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"deployment": " "}, "deployment"),
        ({"deployment": "a\nb"}, "deployment"),
        ({"deployment": "x" * 257}, "deployment"),
        ({"target.resource_id": "a:b"}, "target.resource_id"),
        ({"target.resource_type": "daemon"}, "target.resource_id"),
        ({"target.resource_id": "a", "target.resource_type": "lambda"}, "target.resource_type"),
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"lease.seconds": 0}, "lease.seconds"),
        ({"poll.wait_seconds": 61.0}, "poll.wait_seconds"),
        ({"poll.max_interval_seconds": 1.0}, "poll.max_interval_seconds"),
        ({"handlers.exec": {"x": {"argv": []}}}, "handlers.exec"),
        ({"handlers.exec": {"": {"argv": ["true"]}}}, "handlers.exec"),
        ({"signing.required": True}, "signing.required: needs signing.keys"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_bad_value_is_refused_with_the_path_of_its_key(changed: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read(None, {}, {**NEEDED, **changed})

    assert str(refused.value).startswith(key)


def test_public_receivers_variables_speak_when_our_own_are_silent(tmp_path: Path) -> None:
    config = read(
        None,
        {
            "ALIEN_COMMANDS_URL": "https://manager.example/v1",
            "ALIEN_COMMANDS_TOKEN": "t0ken",
            "ALIEN_COMMANDS_TOKEN_FILE": "/nowhere",
            "ALIEN_DEPLOYMENT_ID": "dep-9",
            "ALIEN_COMMANDS_TARGET_RESOURCE_ID": "db",
            "ALIEN_COMMANDS_TARGET_RESOURCE_TYPE": "container",
            "ALIEN_COMMANDS_POLL_INTERVAL_MS": "2500",
            "ALIEN_COMMANDS_POLL_MAX_INTERVAL_MS": "60000",
            "ALIEN_COMMANDS_POLL_JITTER": "0.2",
            "ALIEN_COMMANDS_LEASE_SECONDS": "90",
            "ALIEN_COMMANDS_MAX_LEASES": "2",
            "ALIEN_COMMANDS_DRAIN_TIMEOUT_MS": "1500",
        },
    )

    assert config.server.url == "https://manager.example/v1"
    assert config.server.token == "t0ken"
    assert config.server.token_file is None  # the literal wins, as it does for receivers
    assert config.deployment == "dep-9"
    assert config.target is not None
    assert (config.target.resource_id, config.target.resource_type) == ("db", "container")
    assert (config.poll.interval_seconds, config.poll.max_interval_seconds) == (2.5, 60)
    assert config.poll.jitter == 0.2
    assert config.lease.seconds == 90
    assert config.max_concurrent == 2
    assert config.drain.seconds == 1.5


def test_our_own_keys_win_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("server: {token_file: /ours}\nlease: {seconds: 10}\n")

    config = read(
        file,
        {
            "ALIEN_COMMANDS_URL": "https://theirs/v1",
            "ALIEN_COMMANDS_TOKEN": "theirs",
            "ALIEN_COMMANDS_LEASE_SECONDS": "90",
            "ALIEN_DEPLOYMENT_ID": "theirs",
            "ARC_AGENT_DEPLOYMENT": "ours",
        },
        {"server.url": "https://ours"},
    )

    assert config.server.url == "https://ours"
    assert (config.server.token, config.server.token_file) == (None, Path("/ours"))
    assert config.lease.seconds == 10
    assert config.deployment == "ours"


def test_a_bad_variable_of_theirs_is_refused_by_its_name() -> None:
    with pytest.raises(SettingsError, match="ALIEN_COMMANDS_POLL_INTERVAL_MS"):
        read(None, {"ALIEN_COMMANDS_POLL_INTERVAL_MS": "soon"}, NEEDED)


def test_the_data_directory_is_where_systemd_says() -> None:
    config = read(None, {}, NEEDED)

    assert data_directory(config, {"STATE_DIRECTORY": "/var/lib/arc-agent"}) == Path(
        "/var/lib/arc-agent"
    )
    assert data_directory(config, {"XDG_STATE_HOME": "/state"}) == Path("/state/arc-agent")
    configured = read(None, {}, {**NEEDED, "data_dir": "/data"})
    assert data_directory(configured, {"STATE_DIRECTORY": "/x"}) == Path("/data")


def test_the_token_is_the_credential_of_the_unit_unless_another_is_given(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of the unit")
    of_unit = {"CREDENTIALS_DIRECTORY": str(tmp_path)}

    assert read(None, of_unit, NEEDED).server.token_file == tmp_path / "token"
    for given in (
        {"ARC_AGENT_SERVER_TOKEN": "t"},
        {"ARC_AGENT_SERVER_TOKEN_FILE": "/other"},
        {"ALIEN_COMMANDS_TOKEN": "t"},
        {"ALIEN_COMMANDS_TOKEN_FILE": "/other"},
        {"CREDENTIALS_DIRECTORY": str(tmp_path / "missing")},
    ):
        assert read(None, of_unit | given, NEEDED).server.token_file != tmp_path / "token"
