"""Limits of each part of the server, made from the configuration."""

from __future__ import annotations

from collections.abc import Sequence

from arc_protocol.messages.base import CommandTarget
from arc_runtime.network.allowed_hosts import HostRefused
from arc_server.auth.enrolment import EnrolmentLimits
from arc_server.config.reading import bad_value, push_hosts
from arc_server.config.sections import DeploymentEntry, ServerConfig
from arc_server.disk_room import DiskMarks
from arc_server.http.tls import ServerTls, TlsFiles, TlsUnusable
from arc_server.ports.records import Deployment, Quotas
from arc_server.push.outbox import PushLimits
from arc_server.service.limits import CommandLimits
from arc_server.service.retention import RetentionLimits
from arc_server.service.sweeper import SweepLimits


def server_tls(config: ServerConfig) -> ServerTls | None:
    """Return the TLS of the files in the configuration; None without. Raises SettingsError."""
    tls = config.tls
    if tls.cert_file is None:
        return None
    files = TlsFiles(
        cert_file=tls.cert_file, key_file=tls.key_file, client_ca_file=tls.client_ca_file
    )
    try:
        return ServerTls(files)
    except TlsUnusable as error:
        raise bad_value(f"tls.{error.key}", str(error)) from None


def command_limits(config: ServerConfig) -> CommandLimits:
    """Return the limits of commands and leases."""
    return CommandLimits(
        inline_bytes=config.commands.inline_bytes,
        max_blob_bytes=config.commands.max_blob_bytes,
        default_max_attempts=config.commands.default_max_attempts,
        max_attempts=config.commands.max_attempts,
        max_leases=config.leases.max_per_request,
        max_lease_seconds=config.leases.max_seconds,
        max_answer_bytes=config.leases.max_answer_bytes,
        response_url_seconds=config.urls.response_seconds,
        upload_url_seconds=config.urls.upload_seconds,
        download_url_seconds=config.urls.download_seconds,
        list_page=config.commands.list_page,
        max_list_page=config.commands.max_list_page,
        kept_event_lines=config.commands.kept_event_lines,
        agents_seen_within_seconds=config.agents.listed_seconds,
        gone_agents_listed_seconds=config.agents.gone_listed_seconds,
        silent_seconds=config.agents.silent_seconds,
        max_agents_listed=config.agents.max_listed,
        max_schemas_bytes=config.agents.max_schemas_bytes,
        auto_register=config.targets.auto_register,
        max_targets=config.targets.max_per_deployment,
        quotas=Quotas(
            max_live_commands=config.quotas.max_live_commands,
            max_open_uploads=config.quotas.max_open_uploads,
            max_stored_bytes=config.quotas.max_stored_bytes,
            max_idempotency_keys=config.quotas.max_idempotency_keys,
            max_agents=config.quotas.max_agents,
        ),
    )


def sweep_limits(config: ServerConfig) -> SweepLimits:
    """Return the limits of the sweeper."""
    return SweepLimits(
        interval_seconds=config.sweeper.interval_seconds,
        batch=config.sweeper.batch,
        outage_seconds=config.sweeper.outage_seconds,
        outage_grace_seconds=config.leases.outage_grace_seconds,
        idempotency_key_seconds=config.commands.idempotency_key_seconds,
    )


def retention_limits(config: ServerConfig) -> RetentionLimits:
    """Return how long what is kept."""
    return RetentionLimits(
        succeeded_seconds=config.retention.succeeded_seconds,
        failed_seconds=config.retention.failed_seconds,
        expired_seconds=config.retention.expired_seconds,
        bodies_seconds=config.retention.bodies_seconds,
        events_seconds=config.retention.events_seconds,
        upload_seconds=config.retention.upload_seconds,
        agents_seconds=config.retention.agents_seconds,
        tokens_seconds=config.retention.tokens_seconds,
        orphan_seconds=config.retention.orphan_seconds,
        interval_seconds=config.retention.interval_seconds,
        collection_seconds=config.retention.collection_seconds,
        batch=config.retention.batch,
        idempotency_key_seconds=config.commands.idempotency_key_seconds,
    )


def disk_marks(config: ServerConfig) -> DiskMarks:
    """Return the marks of the disk."""
    return DiskMarks(
        soft_bytes=config.disk.soft_free_bytes,
        hard_bytes=config.disk.hard_free_bytes,
        critical_bytes=config.disk.critical_free_bytes,
        ballast_bytes=config.disk.ballast_bytes,
    )


def push_limits(config: ServerConfig) -> PushLimits:
    """Return the limits of the outbox."""
    return PushLimits(
        timeout_seconds=config.push.timeout_seconds,
        response_seconds=config.push.response_seconds,
        backoff_base_seconds=config.push.backoff_base_seconds,
        backoff_cap_seconds=config.push.backoff_cap_seconds,
        concurrency=config.push.concurrency,
        per_deployment=config.push.per_deployment,
        circuit_failures=config.push.circuit_failures,
        circuit_base_seconds=config.push.circuit_base_seconds,
        circuit_cap_seconds=config.push.circuit_cap_seconds,
    )


def enrolment_limits(config: ServerConfig) -> EnrolmentLimits:
    """Return the limits of enrolment."""
    return EnrolmentLimits(
        access_seconds=config.enrolment.access_seconds,
        key_seconds=config.enrolment.key_seconds,
        key_overlap_seconds=config.enrolment.key_overlap_seconds,
    )


def deployments(config: ServerConfig) -> Sequence[Deployment]:
    """Return the deployments.

    Raises SettingsError for a token file that cannot be read, and for a push URL with an address
    that may not be pushed to.
    """
    hosts = push_hosts(config)
    for index, entry in enumerate(config.deployments):
        try:
            if entry.push_url is not None:
                hosts.check(entry.push_url)
        except HostRefused as error:
            raise bad_value(f"deployments[{index}].push_url", str(error)) from None
    return [
        Deployment(
            deployment_id=entry.id,
            targets=[
                CommandTarget(resource_id=target.resource_id, resource_type=target.resource_type)
                for target in entry.targets
            ],
            default_target_id=entry.default_target,
            push_url=entry.push_url,
            push_token=_push_token(f"deployments[{index}]", entry),
        )
        for index, entry in enumerate(config.deployments)
    ]


def max_url_seconds(config: ServerConfig) -> float:
    """Return the longest life of a signed URL."""
    urls = config.urls
    return max(urls.response_seconds, urls.upload_seconds, urls.download_seconds)


def _push_token(key: str, entry: DeploymentEntry) -> str | None:
    if entry.push_token_file is None:
        return entry.push_token
    try:
        return entry.push_token_file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII text"
        raise bad_value(f"{key}.push_token_file", f"cannot be read: {reason}") from None
