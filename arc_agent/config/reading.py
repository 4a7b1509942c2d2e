"""Reading the configuration: YAML, then `ARC_AGENT_…` variables, then the command line.

A key that none of them sets is taken from the `ALIEN_COMMANDS_…` variables that other receivers of
the protocol read (docs/protocol.md, Receivers), and then from the credentials of the systemd unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from arc_agent.config.addresses import base_url, listen_address
from arc_agent.config.sections import Config, MetricsSection
from arc_protocol.messages.base import Name
from arc_runtime.config.settings import SettingsError, load
from arc_runtime.config.yaml_file import YamlError, read_yaml
from arc_runtime.network.loopback import is_exposed, is_loopback
from arc_runtime.systemd import credential

PREFIX: Final = "ARC_AGENT"
TOKEN_VARIABLES: Final = (f"{PREFIX}_SERVER_TOKEN", "ALIEN_COMMANDS_TOKEN")
"""The variables that hold the token itself."""

_NO_SERVER: Final = (
    f"is required: the server's URL (in the file of --config, {PREFIX}_SERVER_URL, or --server)"
)
_NO_DEPLOYMENT: Final = (
    "is required: the deployment's id (in the file of --config,"
    f" {PREFIX}_DEPLOYMENT, or --deployment)"
)

_EXPOSED: Final = (
    "is plain HTTP: other hosts can read the token and change commands; use https://,"
    " or set server.allow_http"
)

_RECEIVERS: Final[Mapping[str, str]] = {
    "ALIEN_COMMANDS_URL": "server.url",
    "ALIEN_COMMANDS_TOKEN": "server.token",
    "ALIEN_COMMANDS_TOKEN_FILE": "server.token_file",
    "ALIEN_DEPLOYMENT_ID": "deployment",
    "ALIEN_COMMANDS_TARGET_RESOURCE_ID": "target.resource_id",
    "ALIEN_COMMANDS_TARGET_RESOURCE_TYPE": "target.resource_type",
    "ALIEN_COMMANDS_POLL_INTERVAL_MS": "poll.interval_seconds",
    "ALIEN_COMMANDS_POLL_MAX_INTERVAL_MS": "poll.max_interval_seconds",
    "ALIEN_COMMANDS_POLL_JITTER": "poll.jitter",
    "ALIEN_COMMANDS_LEASE_SECONDS": "lease.seconds",
    "ALIEN_COMMANDS_MAX_LEASES": "max_concurrent",
    "ALIEN_COMMANDS_DRAIN_TIMEOUT_MS": "drain.seconds",
}


def read(
    file: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
    *,
    needs_deployment: bool = True,
) -> Config:
    """Return the checked configuration. Raises SettingsError, which names the key."""

    def is_set(key: str) -> bool:
        return (
            _variable(key) in environ
            or (overrides or {}).get(key) is not None
            or _is_in_file(file, key)
        )

    has_token = is_set("server.token") or is_set("server.token_file")
    given = dict(environ)
    for key, value in _from_receivers(environ):
        if not is_set(key) and not (has_token and key.startswith("server.token")):
            given[_variable(key)] = value
            has_token = has_token or key.startswith("server.token")
    token_of_unit = credential("token", environ)
    if token_of_unit is not None and not has_token:
        given[_variable("server.token_file")] = token_of_unit
    proxy_of_unit = credential("proxy", environ)
    if proxy_of_unit is not None and not is_set("proxy.auth_file"):
        given[_variable("proxy.auth_file")] = proxy_of_unit
    config = load(Config, prefix=PREFIX, file=file, environ=given, overrides=overrides)
    _check(config, needs_deployment=needs_deployment)
    return config


def _variable(key: str) -> str:
    """Return the name of a key's environment variable."""
    return f"{PREFIX}_{key.upper().replace('.', '_')}"


def _from_receivers(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield key and value for each variable of other receivers that is set."""
    for variable, key in _RECEIVERS.items():
        value = environ.get(variable, "").strip()
        if not value:
            continue
        if variable == "ALIEN_COMMANDS_TOKEN_FILE" and environ.get("ALIEN_COMMANDS_TOKEN"):
            continue  # receivers prefer the literal token
        if variable.endswith("_MS"):
            if not value.isdecimal():
                raise SettingsError(
                    "Expected milliseconds", key=key, source=f"the environment variable {variable}"
                )
            value = str(int(value) / 1000)
        yield key, value


def _is_in_file(file: Path | None, key: str) -> bool:
    """Return True if the file sets the key. `load` reports a file that cannot be read."""
    if file is None:
        return False
    try:
        node: Any = read_yaml(file)
    except YamlError:
        return False
    for name in key.split("."):
        if not isinstance(node, dict):
            return False
        node = cast("dict[str, Any]", node).get(name)
    return node is not None


# Checks that types cannot express


def _check(config: Config, *, needs_deployment: bool) -> None:
    """Check each key, and keys against each other. Raises SettingsError."""
    if not config.server.url or not config.server.url.strip():
        raise SettingsError(_NO_SERVER, key="server.url", source=None)
    try:
        base_url(config.server.url)
    except ValueError as error:
        raise SettingsError(str(error), key="server.url", source=None) from None
    if is_exposed(config.server.url) and not config.server.allow_http:
        raise SettingsError(_EXPOSED, key="server.url", source=None)
    if needs_deployment or config.deployment is not None:
        _check_name(config.deployment, "deployment", _NO_DEPLOYMENT)
    if config.name is not None:
        _check_name(config.name, "name", "must not be empty")
    if config.target is not None:
        _check_name(config.target.resource_id, "target.resource_id", "must not be empty")
        if ":" in config.target.resource_id:
            raise SettingsError("must not contain `:`", key="target.resource_id", source=None)
    if config.server.ca_file is not None and config.tls.ca_file is not None:
        raise SettingsError("tls.ca_file is set too", key="server.ca_file", source=None)
    if config.poll.max_interval_seconds < config.poll.interval_seconds:
        raise SettingsError(
            "must not be below poll.interval_seconds", key="poll.max_interval_seconds", source=None
        )
    if config.signing.required and config.signing.keys is None:
        raise SettingsError(
            "needs signing.keys: without them no command could run",
            key="signing.required",
            source=None,
        )
    if config.signing.host_keys and config.signing.keys is None:
        raise SettingsError(
            "needs signing.keys: only signed params can be sealed",
            key="signing.host_keys",
            source=None,
        )
    _check_metrics(config.metrics)
    for kind in ("exec", "http", "sql"):
        for name in getattr(config.handlers, kind):
            _check_name(name, f"handlers.{kind}.{name}", "a command needs a name")


def _check_metrics(metrics: MetricsSection) -> None:
    """Check that figures stay on this host unless `metrics.public` is set. Raises SettingsError."""
    if metrics.listen is None:
        return
    try:
        host, _ = listen_address(metrics.listen)
    except ValueError as error:
        raise SettingsError(str(error), key="metrics.listen", source=None) from None
    if not is_loopback(host) and not metrics.public:
        reason = "is not a loopback address: other hosts could read it; metrics.public allows that"
        raise SettingsError(reason, key="metrics.listen", source=None)


def _check_name(value: str | None, key: str, otherwise: str) -> None:
    """Check a name against the wire's rules; `otherwise` is the error when it is empty."""
    if value is None or not value.strip():
        raise SettingsError(otherwise, key=key, source=None)
    try:
        msgspec.convert(value, Name)
    except msgspec.ValidationError:
        raise SettingsError(
            "1 to 256 characters, without control and invisible ones", key=key, source=None
        ) from None
