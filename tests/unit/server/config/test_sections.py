from collections.abc import Mapping
from pathlib import Path

import pytest

from arc_protocol.messages.base import CommandTarget, ResourceType
from arc_runtime.config.options import keys
from arc_runtime.config.settings import SettingsError
from arc_runtime.network.loopback import is_exposed, is_loopback
from arc_server.auth.oidc import OidcRule
from arc_server.auth.oidc_keys import OidcLimits
from arc_server.auth.tokens import Scope
from arc_server.config import oidc_section
from arc_server.config.oidc_section import OidcSection, oidc_limits, oidc_providers
from arc_server.config.parts import (
    command_limits,
    deployments,
    max_url_seconds,
    push_limits,
    sweep_limits,
)
from arc_server.config.reading import (
    PREFIX,
    exposed_secrets,
    listen_address,
    load_config,
    metrics_address,
)
from arc_server.config.sections import ServerConfig
from arc_server.push.outbox import PushLimits
from arc_server.service.limits import CommandLimits
from arc_server.service.sweeper import SweepLimits

COMMENTED = Path(__file__).parents[4] / "config" / "server.yaml"


def load(text: str, directory: Path, environ: Mapping[str, str] | None = None) -> ServerConfig:
    file = directory / "server.yaml"
    file.write_text(text)
    return load_config(file, None, environ or {})


def test_without_a_file_every_key_has_its_default() -> None:
    assert load_config(None, None, {}) == ServerConfig()


def test_the_defaults_are_those_of_the_parts() -> None:
    config = ServerConfig()

    assert command_limits(config) == CommandLimits()
    assert push_limits(config) == PushLimits()
    assert sweep_limits(config) == SweepLimits()


def test_every_key_says_what_it_is_for() -> None:
    assert [key.path for key in keys(ServerConfig, PREFIX) if not key.description] == []


def test_the_commented_file_says_nothing_but_the_defaults() -> None:
    assert load_config(COMMENTED, None, {}) == ServerConfig(data_dir=Path("/var/lib/arc-server"))


def test_the_commented_file_names_every_key() -> None:
    text = COMMENTED.read_text()

    missing = [
        key.path
        for key in keys(ServerConfig, PREFIX)
        if f"{key.path.rpartition('.')[2].removesuffix('[]')}:" not in text
    ]

    assert missing == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("listne: 127.0.0.1:1", "listne"),
        ("http: {max_body: 5}", "http.max_body"),
        ("http: {max_body_bytes: lots}", "http.max_body_bytes"),
        ("http: {max_body_bytes: 0}", "http.max_body_bytes"),
        ("leases: {max_seconds: 31622401}", "leases.max_seconds"),
        ("listen: 127.0.0.1", "listen"),
        ("listen: 127.0.0.1:65536", "listen"),
        ("listen: ':8080'", "listen"),
        ("public_url: arc.example", "public_url"),
        ("public_url: 'ftp://arc.example'", "public_url"),
        ("public_url: 'http://[::1'", "public_url"),
        ("public_url: 'http://a b'", "public_url"),
        ("http: {trusted_proxies: 10.0.0.0/8}", "http.trusted_proxies"),
        ("http: {trusted_proxies: [10.0.0.1/8]}", "http.trusted_proxies"),
        ("http: {trusted_proxies: [proxy.example]}", "http.trusted_proxies"),
        ("log: {level: loud}", "log.level"),
        ("auth: {disabled: true}\nlisten: 0.0.0.0:80", "auth.disabled"),
        (
            "listen: 'unix:/run/arc.sock'\npublic_url: https://arc.example\nauth: {disabled: true}",
            "auth.disabled",
        ),
        ("listen: 0.0.0.0:80", "listen"),
        ("listen: '[::]:80'", "listen"),
        ("listen: arc.example:80", "listen"),
        ("listen: 'unix:arc.sock'\npublic_url: https://arc.example", "listen"),
        ("listen: 'unix:/'\npublic_url: https://arc.example", "listen"),
        ("listen: 'unix:/run/arc.sock'", "public_url"),
        ("tls: {key_file: a}", "tls.key_file"),
        ("tls: {client_ca_file: a}", "tls.client_ca_file"),
        ("tls: {certificate: a}", "tls.certificate"),
        ("commands: {default_max_attempts: 6, max_attempts: 5}", "commands.default_max_attempts"),
        ("commands: {list_page: 6, max_list_page: 5}", "commands.list_page"),
        ("deployments: [{}]", "deployments[0].id"),
        ("deployments: [{id: ''}]", "deployments[0].id"),
        ("deployments: [{id: a}, {id: a}]", "deployments[1].id"),
        (
            "deployments: [{id: a, targets: [{resource_id: operator}], default_target: operator}]",
            "deployments[0].default_target",
        ),
        ("deployments: [{id: a, target: x}]", "deployments[0].target"),
        ("deployments: [{id: a, targets: [{resource_id: 'a:b'}]}]", "deployments[0].targets"),
        (
            "deployments: [{id: a, targets: [{resource_id: b}, {resource_id: b}]}]",
            "deployments[0].targets",
        ),
        (
            "deployments: [{id: a, targets: [{resource_id: b, resource_type: robot}]}]",
            "deployments[0].targets[0].resource_type",
        ),
        ("deployments: [{id: a, default_target: b}]", "deployments[0].default_target"),
        ("deployments: [{id: a, push_url: nowhere}]", "deployments[0].push_url"),
        ("deployments: [{id: a, push_token: x}]", "deployments[0].push_url"),
        ("push: {allow_hosts: ['*']}", "push.allow_hosts"),
        (
            "deployments: [{id: a, push_url: 'http://b', push_token: x, push_token_file: y}]",
            "deployments[0].push_token_file",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(text, tmp_path)

    assert refused.value.key == key
    assert str(refused.value).startswith(f"{key}: ")


def test_a_variable_overrides_the_file(tmp_path: Path) -> None:
    config = load(
        "listen: 127.0.0.1:1\nhttp: {drain_seconds: 5}",
        tmp_path,
        {"ARC_SERVER_LISTEN": "127.0.0.1:2", "ARC_SERVER_HTTP_MAX_BODY_BYTES": "4096"},
    )

    assert config.listen == "127.0.0.1:2"
    assert config.http.max_body_bytes == 4096
    assert config.http.drain_seconds == 5


def test_the_variable_of_the_sender_does_not_disturb(tmp_path: Path) -> None:
    assert load("", tmp_path, {"ARC_SERVER_URL": "http://x"}) == ServerConfig()


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:8484", ("::1", 8484)),
        ("arc.internal:80", ("arc.internal", 80)),
    ],
)
def test_a_listen_address_is_host_and_port(listen: str, expected: tuple[str, int]) -> None:
    assert listen_address(ServerConfig(listen=listen)) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    shown = f"[{host}]" if ":" in host else host
    assert is_exposed(f"http://{shown}:80/v1") is not expected
    assert not is_exposed(f"https://{shown}:80/v1")


@pytest.mark.parametrize(
    "text",
    [
        "listen: 0.0.0.0:80\ntls: {behind_proxy: true}",
        "listen: '[::]:80'\ntls: {cert_file: /a.pem}",
        "listen: 'unix:/run/arc.sock'\npublic_url: https://arc.example",
    ],
)
def test_a_server_off_loopback_has_tls_or_a_proxy(tmp_path: Path, text: str) -> None:
    load(text, tmp_path)


def test_deployments_are_given_to_the_store_with_their_token_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    config = load(
        f"""
        deployments:
          - id: plain
          - id: pushed
            push_url: https://worker.example/_alien/commands
            push_token_file: {tmp_path}/token
            targets: [{{resource_id: api, resource_type: worker}}, {{resource_id: jobs}}]
            default_target: api
        """,
        tmp_path,
    )

    plain, pushed = deployments(config)

    assert (plain.deployment_id, plain.targets, plain.push_url) == ("plain", [], None)
    assert pushed.push_token == "secret"
    assert pushed.default_target_id == "api"
    assert pushed.targets == [
        CommandTarget(resource_id="api", resource_type=ResourceType.WORKER),
        CommandTarget(resource_id="jobs", resource_type=ResourceType.DAEMON),
    ]


def test_a_token_file_that_cannot_be_read_is_refused_with_its_key(tmp_path: Path) -> None:
    config = load(
        f"deployments: [{{id: a, push_url: 'http://b', push_token_file: {tmp_path}/none}}]",
        tmp_path,
    )

    with pytest.raises(SettingsError, match=r"deployments\[0\].push_token_file: cannot be read"):
        deployments(config)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("tls: {cert_file: /c, key_file: %s}", "tls.key_file: "),
        ("tls: {cert_file: %s}", "tls.cert_file: "),
        (
            "deployments: [{id: a, push_url: 'http://b', push_token_file: %s}]",
            "deployments[0].push_token_file: ",
        ),
    ],
)
def test_a_secret_that_every_user_may_read_is_named(tmp_path: Path, text: str, key: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    config = load(text.replace("%s", str(secret)), tmp_path)

    secret.chmod(0o644)
    [line] = exposed_secrets(config, None)
    secret.chmod(0o640)

    assert line.startswith(f"{key}{secret} is open to every user")
    assert exposed_secrets(config, None) == []


def test_the_longest_url_is_the_longest_of_all(tmp_path: Path) -> None:
    config = load(
        "urls: {response_seconds: 60, upload_seconds: 61, download_seconds: 90}", tmp_path
    )

    assert max_url_seconds(config) == 90


PROVIDER = """
oidc:
  providers:
    - name: ci
      issuer: https://issuer.test
      audience: [arc]
      rules:
        - {claims: {repository_id: 7, environment: [a, b*]}, scope: sender, deployments: ["a-*"]}
"""


def test_providers_are_read_with_their_rules(tmp_path: Path) -> None:
    (provider,) = oidc_providers(load(PROVIDER, tmp_path).oidc)

    assert provider.algorithms == ("RS256", "ES256")
    assert provider.rules == [
        OidcRule(
            claims={"repository_id": ["7"], "environment": ["a", "b*"]},
            scope=Scope.SENDER,
            deployments=("a-*",),
        )
    ]


def test_the_defaults_of_oidc_are_those_of_the_part() -> None:
    assert oidc_limits(OidcSection()) == OidcLimits()


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("name: ci", "name: My CI", "oidc.providers[0].name"),
        ("https://issuer.test", "http://issuer.test", "oidc.providers[0].issuer"),
        ("audience: [arc]", "audience: []", "oidc.providers[0].audience"),
        ("audience: [arc]", "audience: [arc]\n      algorithms: [HS256]", "algorithms[0]"),
        ("audience: [arc]", "audience: [arc]\n      algorithms: [none]", "algorithms[0]"),
        ("audience: [arc]", "audience: [arc]\n      jwks_url: file:///x", "jwks_url"),
        ("scope: sender", "scope: agent", "rules[0].scope"),
        ("scope: sender", "scope: admin", "rules[0].deployments"),
        (', deployments: ["a-*"]', "", "rules[0].deployments"),
        (', deployments: ["a-*"]', ", deployments: []", "rules[0].deployments"),
        ('["a-*"]', '["a-*"], commands: []', "rules[0].commands"),
        ("{repository_id: 7, environment: [a, b*]}", "{}", "rules[0].claims"),
        ("[a, b*]", "[]", "rules[0].claims.environment"),
        ("repository_id: 7", 'repository_id: ""', "rules[0].claims.repository_id"),
        ("  providers:", "  keep_seconds: 60\n  providers:", "oidc.keep_seconds"),
    ],
)
def test_a_provider_that_cannot_be_used_is_refused_by_its_key(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        load(PROVIDER.replace(old, new), tmp_path)

    assert key in str(refused.value)


@pytest.mark.parametrize("field", ["name", "issuer"])
def test_two_providers_differ_in_name_and_issuer(tmp_path: Path, field: str) -> None:
    again = PROVIDER.partition("providers:")[2]
    other = "issuer" if field == "name" else "name"
    again = again.replace(f"{other}: ", f"{other}: https://x-" if other == "issuer" else "name: x-")

    with pytest.raises(SettingsError, match=rf"providers\[1\].{field}: two providers"):
        load(PROVIDER + again.replace("https://x-https://", "https://x-"), tmp_path)


def test_providers_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc_section, "find_spec", lambda _: None)

    with pytest.raises(SettingsError, match=r"oidc\.providers: needs the extra oidc"):
        load(PROVIDER, tmp_path)
    assert load("", tmp_path) == ServerConfig()


def test_a_push_url_with_a_private_address_needs_to_be_allowed(tmp_path: Path) -> None:
    text = "deployments: [{id: a, push_url: 'http://10.1.2.3/x'}]"

    with pytest.raises(SettingsError, match=r"deployments\[0\].push_url: .*push.allow_hosts"):
        deployments(load(text, tmp_path))

    assert deployments(load(f"{text}\npush: {{allow_hosts: [10.0.0.0/8]}}", tmp_path))


@pytest.mark.parametrize("listen", ["127.0.0.1:9184", "[::1]:0", "localhost:0", "unix:/run/m.sock"])
def test_figures_are_served_where_only_this_host_reads_them(listen: str, tmp_path: Path) -> None:
    config = load(f"metrics: {{listen: '{listen}'}}", tmp_path)

    assert metrics_address(config) is not None


@pytest.mark.parametrize("listen", ["0.0.0.0:9184", "[::]:9184", "10.0.0.1:9184"])
def test_figures_are_served_to_other_hosts_only_if_the_operator_says_so(
    listen: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"metrics\.public allows that"):
        load(f"metrics: {{listen: '{listen}'}}", tmp_path)

    assert metrics_address(load(f"metrics: {{listen: '{listen}', public: true}}", tmp_path))


@pytest.mark.parametrize("listen", ["9184", "unix:here", "127.0.0.1:99999", "http://x:1", "''"])
def test_an_address_for_figures_that_is_none_names_its_key(listen: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(f"metrics: {{listen: {listen}}}", tmp_path)

    assert caught.value.key == "metrics.listen"
