"""Reading a configuration: YAML, then `ARC_SERVER_…` variables, then the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from arc_protocol.messages.base import RESERVED_TARGETS
from arc_runtime.config.settings import SettingsError, load
from arc_runtime.key_files import exposed
from arc_runtime.network.allowed_hosts import HostPolicy
from arc_runtime.network.loopback import is_loopback
from arc_server.config.oidc_section import check_oidc
from arc_server.config.sections import DeploymentEntry, ServerConfig
from arc_server.http.listening import Address
from arc_server.http.proxies import TrustedProxies

PREFIX: Final = "ARC_SERVER"
NOT_OURS: Final = ("ARC_SERVER_URL",)
"""Variables with the server's prefix that are for the sender."""

_UNIX: Final = "unix:"
_LISTEN: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")


def load_config(
    file: Path | None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ServerConfig:
    """Return the configuration. Raises SettingsError, naming the key, for an unusable value."""
    config = load(
        ServerConfig,
        prefix=PREFIX,
        file=file,
        environ=environ,
        overrides=overrides,
        ignore=NOT_OURS,
    )
    metrics_address(config)
    address = listen_address(config)
    check_exposure(config, None if isinstance(address, Path) else address[0])
    for key in ("key_file", "client_ca_file"):
        if getattr(config.tls, key) is not None and config.tls.cert_file is None:
            raise bad_value(f"tls.{key}", "needs tls.cert_file")
    try:
        TrustedProxies(config.http.trusted_proxies)
    except ValueError as error:
        raise bad_value("http.trusted_proxies", str(error)) from None
    if config.public_url is not None:
        _check_url("public_url", config.public_url)
    if config.commands.default_max_attempts > config.commands.max_attempts:
        raise bad_value("commands.default_max_attempts", "is above commands.max_attempts")
    if config.commands.list_page > config.commands.max_list_page:
        raise bad_value("commands.list_page", "is above commands.max_list_page")
    if config.disk.hard_free_bytes > config.disk.soft_free_bytes:
        raise bad_value("disk.hard_free_bytes", "is above disk.soft_free_bytes")
    if config.disk.critical_free_bytes > config.disk.hard_free_bytes:
        raise bad_value("disk.critical_free_bytes", "is above disk.hard_free_bytes")
    urls = config.urls
    longest_url = max(urls.response_seconds, urls.upload_seconds, urls.download_seconds)
    if config.retention.tokens_seconds < longest_url:
        raise bad_value("retention.tokens_seconds", "is below the life of signed URLs (urls)")
    check_oidc(config.oidc)
    push_hosts(config)
    _check_deployments(config.deployments)
    return config


def listen_address(config: ServerConfig) -> Address:
    """Return host and port of `listen`, or the path of a Unix socket. Raises SettingsError."""
    return _address("listen", config.listen)


def metrics_address(config: ServerConfig) -> Address | None:
    """Return the address of `metrics.listen`; None if there is none. Raises SettingsError.

    Figures stay on this host unless `metrics.public` is set.
    """
    if config.metrics.listen is None:
        return None
    address = _address("metrics.listen", config.metrics.listen)
    if not isinstance(address, Path) and not is_loopback(address[0]) and not config.metrics.public:
        reason = "is not a loopback address: other hosts could read it; metrics.public allows that"
        raise bad_value("metrics.listen", reason)
    return address


def _address(key: str, text: str) -> Address:
    if text.startswith(_UNIX):
        path = Path(text.removeprefix(_UNIX))
        if not path.is_absolute() or path.name in ("", "..") or "\0" in str(path):
            raise bad_value(key, "unix: needs an absolute path, like unix:/run/arc/http.sock")
        return path
    found = _LISTEN.fullmatch(text)
    if found is None or int(found["port"]) > 65_535:
        raise bad_value(key, "must be HOST:PORT, like 127.0.0.1:8484 or [::1]:8484, or unix:PATH")
    return found["host"].strip("[]"), int(found["port"])


def push_hosts(config: ServerConfig) -> HostPolicy:
    """Return the rule about hosts that may be pushed to. Raises SettingsError."""
    try:
        return HostPolicy("", config.push.allow_hosts, setting="push.allow_hosts")
    except ValueError as error:
        raise bad_value("push.allow_hosts", str(error)) from None


def check_exposure(config: ServerConfig, host: str | None) -> None:
    """Refuse to serve on a host what only this machine may see. None stands for a Unix socket.

    Raises SettingsError.
    """
    if host is None:
        if config.auth.disabled:
            raise bad_value(
                "auth.disabled",
                "--no-auth is for loopback addresses only, not for a Unix socket: who comes through"
                " a proxy could do everything",
            )
        if config.public_url is None:
            raise bad_value("public_url", "is needed with a Unix socket: clients reach a proxy")
        return
    if is_loopback(host):
        return
    if config.auth.disabled:
        raise bad_value("auth.disabled", f"--no-auth is for loopback addresses only, not {host}")
    if config.tls.cert_file is None and not config.tls.behind_proxy:
        raise bad_value(
            "listen",
            f"plain HTTP on {host}: other hosts can read tokens and change commands; set"
            " tls.cert_file, or tls.behind_proxy where a proxy ends TLS",
        )


def _check_deployments(entries: Sequence[DeploymentEntry]) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        key = f"deployments[{index}]"
        if entry.id in seen:
            raise bad_value(f"{key}.id", "two deployments have this id")
        seen.add(entry.id)
        targets = [target.resource_id for target in entry.targets]
        if len(set(targets)) != len(targets):
            raise bad_value(f"{key}.targets", "two targets have one id")
        if any(":" in target for target in targets):
            raise bad_value(f"{key}.targets", "a target's id may not contain a colon")
        if entry.default_target is not None and entry.default_target not in targets:
            raise bad_value(f"{key}.default_target", "is not among the targets")
        if entry.default_target in RESERVED_TARGETS:
            raise bad_value(f"{key}.default_target", "is reserved: commands have to name it")
        if entry.push_url is not None:
            _check_url(f"{key}.push_url", entry.push_url)
        elif entry.push_token is not None or entry.push_token_file is not None:
            raise bad_value(f"{key}.push_url", "is needed when there is a push token")
        if entry.push_token is not None and entry.push_token_file is not None:
            raise bad_value(f"{key}.push_token_file", "give this or push_token, not both")


def exposed_secrets(config: ServerConfig, file: Path | None) -> list[str]:
    """Return a line about each push token and TLS key that every user of this host may read.

    `file` is the configuration's.
    """
    entries, tls = config.deployments, config.tls
    files = {f"deployments[{n}].push_token_file": e.push_token_file for n, e in enumerate(entries)}
    key = "tls.cert_file" if tls.key_file is None else "tls.key_file"  # which then holds the key
    files[key] = tls.key_file or tls.cert_file
    return exposed(files, file, *(entry.push_token for entry in entries))


def is_http_url(url: str) -> bool:
    """Return True for an absolute http or https URL."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_good and not any(character.isspace() for character in url)


def _check_url(key: str, url: str) -> None:
    if not is_http_url(url):
        raise bad_value(key, "must be an absolute http or https URL")


def bad_value(key: str, message: str) -> SettingsError:
    """Return the error for a key with an unusable value."""
    return SettingsError(message, key=key, source=None)
