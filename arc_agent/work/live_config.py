"""The live configuration of a running agent. A reload replaces it whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from arc_agent.config.places import data_directory
from arc_agent.config.reading import read
from arc_agent.config.sections import NEEDS_RESTART, Config
from arc_agent.guard.policy import Policy
from arc_agent.handlers.loading import (
    add_declared,
    check_host,
    configure,
    is_declared,
    load_handlers,
)
from arc_agent.handlers.registry import HandlerError, Registry
from arc_agent.host.clock import boot_seconds
from arc_agent.net.routes import Routes
from arc_agent.net.tls import TlsError
from arc_agent.net.token import Bearer, ConfiguredToken, TokenError
from arc_runtime.config.settings import SettingsError
from arc_runtime.key_files import exposed
from arc_runtime.logs import setup
from arc_runtime.logs.output import LogSink
from arc_runtime.network.allowed_hosts import HostPolicy

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The places that the configuration comes from, so that it can be read again."""

    file: Path | None
    environ: Mapping[str, str]
    overrides: Mapping[str, Any]

    def read(self) -> Config:
        """Return the configuration, checked as far as it can be without the network.

        Raises SettingsError.
        """
        config = read(self.file, self.environ, self.overrides)
        try:
            HostPolicy(config.server.url or "", config.transfer.allow_hosts)
        except ValueError as error:
            raise SettingsError(str(error), key="transfer.allow_hosts", source=None) from None
        self.network(config)
        return config

    def network(self, config: Config) -> Routes:
        """Return the way out that a configuration describes. Raises SettingsError."""
        try:
            return Routes(config.server, config.proxy, config.tls, environ=self.environ)
        except TlsError as error:
            key = error.key
            if key == "tls.ca_file" and config.server.ca_file is not None:
                key = "server.ca_file"
            raise SettingsError(error.reason, key=key, source=None) from None
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise SettingsError(reason, key="proxy.auth_file", source=None) from None
        except ValueError as error:
            raise SettingsError(str(error), key="proxy", source=None) from None


class LiveConfig:
    """Configuration, handlers, policy and keys in force. Read an attribute anew each time."""

    def __init__(self, source: Source) -> None:
        """Read all of it. Raises SettingsError, TokenError, HandlerError."""
        self._source = source
        self.config = source.read()
        self.network = source.network(self.config)
        self.token = bearer_of(self.config, source.environ, self.network)
        self.registry = load_handlers(self.config.handlers)
        self.policy = policy_of(self.config)
        self.signing_keys = _signing_keys(self.config)
        """The public keys of senders, by id; None when signatures are not verified."""
        self.host_keys = _host_keys(self.config)
        """The host's own private keys, by name."""
        self._output: LogSink | None = None

    def warn_of_exposed_secrets(self) -> None:
        """Log each secret that every user of this host may read."""
        for line in exposed_secrets(self.config, self._source.file):
            log.warning("secret.exposed", reason=line)

    @property
    def agent_name(self) -> str:
        """Return the name with which the agent's ids begin: an enrolled agent keeps its own."""
        identity = getattr(self.token, "identity", None)
        return (identity and identity.agent_name) or self.config.agent_name

    def check_host(self) -> None:
        """Check that this host can run the configured handlers. Raises HandlerError."""
        check_host(self.config.handlers)

    def configure_logs(self, config: Config | None = None) -> None:
        """Log as the configuration says."""
        chosen = (config or self.config).log
        old, self._output = self._output, setup.configure(chosen.format, chosen.level)
        if old is not None and old is not self._output:  # the same output mostly, which stays
            old.close()

    def concurrency_of(self, name: str) -> int | None:
        """Return how many runs of a handler may go on at a time; None without a limit."""
        handler = self.registry.get(name)
        return None if handler is None else handler.concurrency

    def reload(self) -> bool:
        """Read it again. Return False when it is refused, and the old configuration stays.

        The token, the log, limits, times, proxy, certificates, allowed hosts and the declared
        commands change at once. The server, the identity, the data directory and imported
        modules need a restart, which is logged.
        """
        self.token.reload()
        try:
            fresh = self._source.read()
            registry = self._with_modules_of(self.config, fresh)
            check_host(fresh.handlers)
            policy = policy_of(fresh)
            signing_keys = _signing_keys(fresh)
            host_keys = _host_keys(fresh)
        except (SettingsError, HandlerError, TokenError) as error:
            log.error("reload.refused", reason=str(error))
            return False
        kept = {key: getattr(self.config, key) for key in NEEDS_RESTART}
        ignored = [key for key, value in kept.items() if getattr(fresh, key) != value]
        old = self.config.handlers
        ignored += [
            f"handlers.{key}"
            for key in ("modules", "path", "entry_points", "strict")
            if getattr(fresh.handlers, key) != getattr(old, key)
        ]
        if ignored:
            log.warning("reload.needs_restart", keys=ignored)
        self.configure_logs(fresh)
        self.config = msgspec.structs.replace(fresh, **kept)
        self.network.configure(self.config)
        self.registry = registry
        self.policy = policy
        self.signing_keys = signing_keys
        self.host_keys = host_keys
        self.warn_of_exposed_secrets()
        log.info("reload.done")
        return True

    def _with_modules_of(self, old: Config, fresh: Config) -> Registry:
        """Return the imported handlers as they are, and the new configuration's declared ones."""
        registry = Registry(self.registry.lifespans, self.registry.provisions)
        for each in self.registry.as_found():
            if not is_declared(each.name, old.handlers):
                registry.add(each)
        add_declared(registry, fresh.handlers)
        configure(registry, fresh.handlers, is_whole=not fresh.handlers.entry_points)
        return registry


def exposed_secrets(config: Config, file: Path | None) -> list[str]:
    """Return a line about each secret that every user of this host may read.

    `file` is the configuration's.
    """
    tls = config.tls
    files = {
        "server.token_file": config.server.token_file,
        "proxy.auth_file": config.proxy.auth_file,
    }
    key = "tls.client_cert" if tls.client_key is None else "tls.client_key"  # which holds the key
    files[key] = tls.client_key or tls.client_cert
    for name, section in config.handlers.http.items():
        for header, place in section.header_files.items():
            files[f"handlers.http.{name}.header_files.{header}"] = place
    for name, section in config.handlers.sql.items():
        files[f"handlers.sql.{name}.dsn_file"] = section.dsn_file
    try:
        password = urlsplit(config.proxy.url or "").password
    except ValueError:
        password = None
    return exposed(files, file, config.server.token, password)


def bearer_of(config: Config, environ: Mapping[str, str], network: Routes) -> Bearer:
    """Return the token of an agent that enrolled, or else the token of its configuration.

    Raises TokenError.
    """
    directory = data_directory(config, environ)
    if not os.access(directory / "identity", os.F_OK):  # nor in a directory that may not be read
        return ConfiguredToken(config.server.token, config.server.token_file)
    from arc_agent.net.access_token import AccessToken  # for agents that enrolled
    from arc_agent.net.identity_files import IdentityFiles

    files = IdentityFiles(directory)
    identity = files.read()
    if identity is None:
        return ConfiguredToken(config.server.token, config.server.token_file)
    if identity.deployment_id != config.deployment_id:
        raise TokenError(
            f"{files.directory} is an identity for the deployment {identity.deployment_id!r}, the"
            f" configuration says {config.deployment_id!r}: `arc-agent enrol --replace`, or remove"
            " that directory"
        )
    return AccessToken(files, identity, config.server, boot_seconds, network)


def _signing_keys(config: Config) -> Mapping[str, bytes] | None:
    """Return the keys whose signatures count, by id; None without any. Raises SettingsError."""
    place = config.signing.keys
    if place is None:
        return None
    from arc_runtime.key_files import SIGNING, KeyFileError, read_public  # for hosts with keys

    try:
        found = read_public(place.expanduser(), SIGNING)
    except KeyFileError as error:
        raise SettingsError(str(error), key="signing.keys", source=None) from None
    return {name: key.data for name, key in found.items()}


def _host_keys(config: Config) -> Mapping[str, bytes]:
    """Return the keys that open sealed params, by name. Raises SettingsError."""
    if not config.signing.host_keys:
        return {}
    from arc_agent.guard.sealed_params import read_host_keys  # for hosts with keys
    from arc_runtime.key_files import KeyFileError

    try:
        return read_host_keys(config.signing.host_keys)
    except KeyFileError as error:
        raise SettingsError(str(error), key="signing.host_keys", source=None) from None


def policy_of(config: Config) -> Policy | None:
    """Return the rules of this host; None when it has none. Raises SettingsError."""
    if config.policy.file is None:
        return None
    from arc_agent.guard.policy_file import read_policy  # for hosts with a policy

    return read_policy(config.policy.file.expanduser())
