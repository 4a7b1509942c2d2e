"""Quotas: what a deployment uses, and the refusal of what would be too much."""

from __future__ import annotations

from typing import Final

from arc_protocol.errors import QuotaExceeded
from arc_server.ports.records import Quotas
from arc_server.store.engine.session import StoreSession
from arc_server.store.engine.usage import Usage

RETRY_AFTER_SECONDS: Final = 10
"""Agents and purges make room in seconds or in hours: a client gains nothing by asking sooner."""


def usage_of(db: StoreSession, deployment_id: str, *, is_fresh: bool = False) -> Usage:
    """Return what a deployment uses, with what this batch has changed.

    Unless `is_fresh`, it may be too high by what was removed since it was read.
    """
    known = None if is_fresh else db.usage.known(deployment_id)
    if known is None:
        row = db.row("usage_of", deployment_id=deployment_id)
        known = Usage() if row is None else Usage(*row)
        db.usage.remember(deployment_id, known)
    changed = db.usage.changed(deployment_id)
    return Usage(
        live_commands=known.live_commands + changed.live_commands,
        open_uploads=known.open_uploads + changed.open_uploads,
        stored_bytes=known.stored_bytes + changed.stored_bytes,
        idempotency_keys=known.idempotency_keys + changed.idempotency_keys,
        agents=known.agents,
    )


def check_create(
    db: StoreSession, deployment_id: str, quotas: Quotas, *, is_upload: bool, has_key: bool
) -> None:
    """Raise QuotaExceeded if a deployment may have no further command."""
    if _exceeded(usage_of(db, deployment_id), quotas, is_upload, has_key) is None:
        return
    exceeded = _exceeded(usage_of(db, deployment_id, is_fresh=True), quotas, is_upload, has_key)
    if exceeded is not None:
        _refuse(deployment_id, *exceeded)


def check_agent(db: StoreSession, deployment_id: str, quotas: Quotas) -> None:
    """Raise QuotaExceeded if a deployment may have no further agent."""
    used = usage_of(db, deployment_id, is_fresh=True)
    if used.agents >= quotas.max_agents:
        _refuse(deployment_id, "max_agents", quotas.max_agents)
    if used.stored_bytes >= quotas.max_stored_bytes:
        _refuse(deployment_id, "max_stored_bytes", quotas.max_stored_bytes)


def upload_room(db: StoreSession, deployment_id: str, quotas: Quotas) -> int:
    """Fulfil CommandStore.upload_room."""
    used = usage_of(db, deployment_id, is_fresh=True)
    return max(0, quotas.max_stored_bytes - used.stored_bytes)


def recount(db: StoreSession, deployment_id: str) -> None:
    """Fulfil StoreHealth.recount_usage."""
    db.write_usage()  # what this batch has added so far is in the tables, too
    db.change("recount_usage", deployment_id=deployment_id)
    db.usage.reread(deployment_id)


def _exceeded(
    used: Usage, quotas: Quotas, is_upload: bool, has_key: bool
) -> tuple[str, int] | None:
    if used.live_commands >= quotas.max_live_commands:
        return "max_live_commands", quotas.max_live_commands
    if used.stored_bytes >= quotas.max_stored_bytes:
        return "max_stored_bytes", quotas.max_stored_bytes
    if is_upload and used.open_uploads >= quotas.max_open_uploads:
        return "max_open_uploads", quotas.max_open_uploads
    if has_key and used.idempotency_keys >= quotas.max_idempotency_keys:
        return "max_idempotency_keys", quotas.max_idempotency_keys
    return None


def _refuse(deployment_id: str, quota: str, most: int) -> None:
    raise QuotaExceeded(
        f"the deployment has used up its quota {quota}: {most}",
        deployment_id=deployment_id,
        quota=quota,
        most=most,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
