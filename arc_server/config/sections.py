"""The server's configuration: every key with its default, its bounds and what it is for.

YAML, then `ARC_SERVER_…` variables, then the command line.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from arc_protocol.messages.base import Name, ResourceType
from arc_protocol.messages.bodies import DEFAULT_INLINE_BYTES
from arc_runtime.config.sections import LogSection, Section, about
from arc_runtime.config.settings import SettingsError, load
from arc_server.http.limits import HttpLimits

PREFIX: Final = "ARC_SERVER"
NOT_OURS: Final = ("ARC_SERVER_URL",)
"""Variables of our prefix that are for the sender."""
DAY_SECONDS: Final = 86_400
MAX_URL_SECONDS: Final = 366 * DAY_SECONDS

_LISTEN: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")


class AuthSection(Section, frozen=True, kw_only=True):
    """Who may call."""

    disabled: Annotated[
        bool, about("Every caller is an admin (`--no-auth`). Refused off loopback addresses.")
    ] = False
    token_cache_seconds: Annotated[
        float,
        about(
            "How long a look-up is remembered, unless something is revoked meanwhile.",
            ge=0,
            le=300,
        ),
    ] = 5.0
    revocation_seconds: Annotated[
        float,
        about(
            "How often the server looks whether a token or a credential was revoked: the most that"
            " it lives on, also in a request that waits.",
            gt=0,
            le=60,
        ),
    ] = 1.0


class EnrolmentSection(Section, frozen=True, kw_only=True):
    """Agents that enrolled, and what they show: docs/enrolment.md."""

    access_seconds: Annotated[
        float,
        about(
            "How long an access token is good. Agents fetch the next at two thirds of it.",
            ge=1,
            le=DAY_SECONDS,
        ),
    ] = 3600.0
    key_seconds: Annotated[
        float,
        about(
            "How old an agent's key grows: at two thirds of it the agent makes a new one. An old"
            " one is still good for an agent that was off.",
            ge=1,
            le=MAX_URL_SECONDS,
        ),
    ] = 90.0 * DAY_SECONDS
    key_overlap_seconds: Annotated[
        float,
        about(
            "How long the key before is good after a new one was first used.",
            ge=0,
            le=MAX_URL_SECONDS,
        ),
    ] = float(DAY_SECONDS)
    max_per_second: Annotated[
        float,
        about(
            "Enrolments a second, and as many access tokens and new keys that a good signature asks"
            " for; 429 past it.",
            gt=0,
            le=100_000,
        ),
    ] = 200.0


class LeaseSection(Section, frozen=True, kw_only=True):
    """How commands are handed out."""

    max_seconds: Annotated[
        int, about("The longest lease that may be asked for.", ge=1, le=3600)
    ] = 3600
    max_per_request: Annotated[
        int, about("The most leases that one request may ask for.", ge=1, le=1000)
    ] = 1000
    outage_grace_seconds: Annotated[
        float,
        about(
            "For how long leases that ran out while the server was down stay renewable when it is"
            " back. Longer than the agents' longest back-off.",
            ge=0,
            le=3600,
        ),
    ] = 35.0


class CommandSection(Section, frozen=True, kw_only=True):
    """Bounds on commands and their bodies."""

    inline_bytes: Annotated[
        int,
        about(
            "Bodies up to this size travel in messages; larger ones go to blob storage.",
            ge=0,
            le=16 << 20,
        ),
    ] = DEFAULT_INLINE_BYTES
    max_blob_bytes: Annotated[
        int, about("The largest body that may be uploaded; 413 past it.", ge=1, le=1 << 45)
    ] = 5 << 30
    default_max_attempts: Annotated[
        int,
        about(
            "How often a command is handed out before it fails, unless it says so.", ge=1, le=10_000
        ),
    ] = 5
    max_attempts: Annotated[
        int, about("The most attempts that a command may ask for.", ge=1, le=10_000)
    ] = 100
    list_page: Annotated[
        int, about("Commands on a page unless asked otherwise.", ge=1, le=10_000)
    ] = 100
    max_list_page: Annotated[int, about("The most commands on a page.", ge=1, le=10_000)] = 1000
    kept_event_lines: Annotated[
        int,
        about(
            "How many of the last lines that handlers say about a command are kept.",
            ge=1,
            le=100_000,
        ),
    ] = 1000
    idempotency_key_seconds: Annotated[
        float,
        about(
            "The least that an idempotency key lives; never shorter than its command.",
            ge=DAY_SECONDS,
            le=MAX_URL_SECONDS,
        ),
    ] = float(DAY_SECONDS)


class UrlSection(Section, frozen=True, kw_only=True):
    """For how long signed URLs are good."""

    response_seconds: Annotated[
        float,
        about(
            "URLs that a response is uploaded and handed in by: as long as the outage that a"
            " finished result shall survive.",
            ge=60,
            le=MAX_URL_SECONDS,
        ),
    ] = 7.0 * DAY_SECONDS
    upload_seconds: Annotated[
        float, about("URLs that params are uploaded by.", ge=60, le=MAX_URL_SECONDS)
    ] = 3600.0
    download_seconds: Annotated[
        float,
        about(
            "URLs that bodies are read by; minted afresh at every read.", ge=60, le=MAX_URL_SECONDS
        ),
    ] = 3600.0


class TargetsSection(Section, frozen=True, kw_only=True):
    """How deployments and targets come to be known."""

    auto_register: Annotated[
        bool, about("Register deployments and targets when they are first named.")
    ] = True


class AgentSection(Section, frozen=True, kw_only=True):
    """The list of agents."""

    listed_seconds: Annotated[
        float,
        about(
            "For how long an agent that is not heard of stays in the list.",
            ge=1,
            le=MAX_URL_SECONDS,
        ),
    ] = 7.0 * DAY_SECONDS
    max_listed: Annotated[int, about("The most agents in one answer.", ge=1, le=1_000_000)] = 10_000
    max_schemas_bytes: Annotated[
        int,
        about(
            "What the schemas of one agent's handlers may take; more are not kept.",
            ge=0,
            le=16 << 20,
        ),
    ] = 1 << 20


class PushSection(Section, frozen=True, kw_only=True):
    """Delivery to deployments that have a `push_url`."""

    timeout_seconds: Annotated[float, about("How long one send may take.", gt=0, le=300)] = 10.0
    response_seconds: Annotated[
        float,
        about(
            "How long an accepted command may take before it is sent again.", gt=0, le=DAY_SECONDS
        ),
    ] = 330.0
    backoff_base_seconds: Annotated[
        float,
        about(
            "The longest first pause before a failed send is tried again; each next may be twice as"
            " long.",
            gt=0,
            le=3600,
        ),
    ] = 5.0
    backoff_cap_seconds: Annotated[
        float, about("The longest such pause.", gt=0, le=DAY_SECONDS)
    ] = 60.0
    concurrency: Annotated[int, about("Sends at a time.", ge=1, le=1000)] = 32


class SweeperSection(Section, frozen=True, kw_only=True):
    """How time passes: deadlines, lapsed leases, keys."""

    interval_seconds: Annotated[
        float, about("How often deadlines and leases are looked at.", gt=0, le=60)
    ] = 0.5
    batch: Annotated[
        int, about("Commands that one step of a sweep changes at most.", ge=1, le=10_000)
    ] = 500
    outage_seconds: Annotated[
        float,
        about("A silence of the server longer than this counts as an outage.", gt=0, le=3600),
    ] = 5.0


class TargetEntry(Section, frozen=True, kw_only=True):
    """One target of a deployment."""

    resource_id: Annotated[Name, about("Its id; no colon.")]
    resource_type: Annotated[ResourceType, about("What kind of thing it is.")] = ResourceType.DAEMON


class DeploymentEntry(Section, frozen=True, kw_only=True):
    """A deployment that is known from the start."""

    id: Annotated[Name, about("Its name.")]
    targets: Annotated[list[TargetEntry], about("Its targets; more may register themselves.")] = []
    default_target: Annotated[
        Name | None, about("The target of commands that name none, when there are several.")
    ] = None
    push_url: Annotated[str | None, about("Commands are POSTed there instead of being leased.")] = (
        None
    )
    push_token: Annotated[str | None, about("The bearer token for it.")] = None
    push_token_file: Annotated[
        Path | None, about("A file that holds that token; better than the token itself.")
    ] = None


class ServerConfig(Section, frozen=True, kw_only=True):
    """All of it."""

    listen: Annotated[str, about("HOST:PORT to serve on; port 0 picks a free one.")] = (
        "127.0.0.1:8484"
    )
    data_dir: Annotated[
        Path, about("Where database, blobs and signing keys are kept. One server each.")
    ] = Path("arc-data")
    public_url: Annotated[
        str | None,
        about(
            "What URLs in answers begin with, as clients reach the server. Absent: scheme and host"
            " of the request that asked."
        ),
    ] = None
    log: LogSection = LogSection()
    http: HttpLimits = HttpLimits()
    auth: AuthSection = AuthSection()
    enrolment: EnrolmentSection = EnrolmentSection()
    leases: LeaseSection = LeaseSection()
    commands: CommandSection = CommandSection()
    urls: UrlSection = UrlSection()
    targets: TargetsSection = TargetsSection()
    agents: AgentSection = AgentSection()
    push: PushSection = PushSection()
    sweeper: SweeperSection = SweeperSection()
    deployments: Annotated[
        list[DeploymentEntry], about("Deployments that are known from the start.")
    ] = []


def load_config(
    file: Path | None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ServerConfig:
    """The configuration. Raises SettingsError, naming the key, for anything that cannot be used."""
    config = load(
        ServerConfig,
        prefix=PREFIX,
        file=file,
        environ=environ,
        overrides=overrides,
        ignore=NOT_OURS,
    )
    host, _ = listen_address(config)
    if config.auth.disabled and not is_loopback(host):
        raise bad_value("auth.disabled", f"--no-auth is for loopback addresses only, not {host}")
    if config.public_url is not None:
        _check_url("public_url", config.public_url)
    if config.commands.default_max_attempts > config.commands.max_attempts:
        raise bad_value("commands.default_max_attempts", "is above commands.max_attempts")
    if config.commands.list_page > config.commands.max_list_page:
        raise bad_value("commands.list_page", "is above commands.max_list_page")
    _check_deployments(config.deployments)
    return config


def listen_address(config: ServerConfig) -> tuple[str, int]:
    """Host and port of `listen`. Raises SettingsError."""
    found = _LISTEN.fullmatch(config.listen)
    if found is None or int(found["port"]) > 65_535:
        raise bad_value("listen", "must be HOST:PORT, like 127.0.0.1:8484 or [::1]:8484")
    return found["host"].strip("[]"), int(found["port"])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_deployments(entries: Sequence[DeploymentEntry]) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        key = f"deployments[{index}]"
        if entry.id in seen:
            raise bad_value(f"{key}.id", "there are two deployments of this name")
        seen.add(entry.id)
        targets = [target.resource_id for target in entry.targets]
        if len(set(targets)) != len(targets):
            raise bad_value(f"{key}.targets", "there are two targets of one name")
        if any(":" in target for target in targets):
            raise bad_value(f"{key}.targets", "a target's id may not contain a colon")
        if entry.default_target is not None and entry.default_target not in targets:
            raise bad_value(f"{key}.default_target", "is not among the targets")
        if entry.push_url is not None:
            _check_url(f"{key}.push_url", entry.push_url)
        elif entry.push_token is not None or entry.push_token_file is not None:
            raise bad_value(f"{key}.push_url", "is needed when there is a push token")
        if entry.push_token is not None and entry.push_token_file is not None:
            raise bad_value(f"{key}.push_token_file", "give this or push_token, not both")


def _check_url(key: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or any(character.isspace() for character in url):
        raise bad_value(key, "must be an absolute http or https URL")


def bad_value(key: str, message: str) -> SettingsError:
    """The error for a key whose value cannot be used."""
    return SettingsError(message, key=key, source=None)
