"""Secrets of a configuration that every user of the host may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_agent.config.reading import read
from arc_agent.work.live_config import exposed_secrets


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("server: {url: 'https://h', token: arc_agent_t}", ["agent.yaml holds a token"]),
        ("server: {url: 'https://h', token_file: %s}", ["server.token_file: "]),
        ("proxy: {url: 'http://p:1', auth_file: %s}", ["proxy.auth_file: "]),
        ("proxy: {url: 'http://user:word@p:1'}", ["agent.yaml holds a token"]),
        (
            "handlers: {http: {h: {url: 'http://127.0.0.1:1', path: /, header_files: {x: %s}}}}",
            ["handlers.http.h.header_files.x: "],
        ),
        ("log: {level: info}", []),
    ],
)
def test_a_secret_that_every_user_may_read_is_named(
    tmp_path: Path, text: str, named: list[str]
) -> None:
    secret, file = tmp_path / "secret", tmp_path / "agent.yaml"
    secret.write_text("user:word")
    file.write_text("deployment: d\n" + text.replace("%s", str(secret)))
    environ = {"ARC_AGENT_SERVER_URL": "https://h", "ARC_AGENT_DATA_DIR": str(tmp_path)}

    for mode, lines in ((0o644, named), (0o600, [])):
        secret.chmod(mode)
        file.chmod(mode)
        found = exposed_secrets(read(file, environ, {}), file)
        assert len(found) == len(lines)
        for part, line in zip(lines, found, strict=True):
            assert part in line
