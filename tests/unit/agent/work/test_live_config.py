"""The live configuration: the agent's name, and secrets that every user of the host may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_agent.config.reading import read
from arc_agent.net.identity_files import Identity, IdentityFiles, KeyPair
from arc_agent.work.live_config import LiveConfig, Source, exposed_secrets


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
        ("tls: {client_cert: /c, client_key: %s}", ["tls.client_key: "]),
        ("tls: {client_cert: %s}", ["tls.client_cert: "]),
        ("handlers: {sql: {q: {dsn_file: %s, statement: SELECT 1}}}", ["handlers.sql.q.dsn_file"]),
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


@pytest.mark.parametrize(
    ("enrolled_as", "name"), [("db-7", "db-7"), (None, "pod-2"), ("", "pod-2")]
)
def test_an_enrolled_agent_keeps_its_name_when_its_host_gets_another(
    tmp_path: Path, enrolled_as: str | None, name: str
) -> None:
    environ = {
        "ARC_AGENT_SERVER_URL": "https://h",
        "ARC_AGENT_DATA_DIR": str(tmp_path),
        "ARC_AGENT_DEPLOYMENT": "d",
        "ARC_AGENT_NAME": "pod-2",
    }
    source = Source(file=None, environ=environ, overrides={})
    before = LiveConfig(source).agent_name
    identity = Identity(
        credential_id="cred_1",
        deployment_id="d",
        server="https://h",
        key=KeyPair.generate(),
        agent_name=enrolled_as,
    )
    IdentityFiles(tmp_path).enrolled(identity)

    assert before == "pod-2"
    assert LiveConfig(source).agent_name == name
