"""Leases for tests of the agent's rooms: a job as the poller makes it, and what is in force."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from arc_agent.config.sections import Config
from arc_agent.guard.policy import Policy
from arc_agent.handlers.context import ParamsSource
from arc_agent.handlers.registry import handlers_of
from arc_agent.jobs.job import Job
from arc_agent.jobs.lease_table import HeldLease
from arc_agent.work.live_config import LiveConfig, Source
from arc_protocol.codec import decode
from arc_protocol.messages.leases import LeaseInfo

DEPLOYMENT = "dep-1"


class InForce:
    """What the guard reads of a live configuration; a test changes it."""

    def __init__(self, **sections: Any) -> None:
        tree = {"deployment": DEPLOYMENT, **sections}
        self.config = msgspec.convert(tree, Config)
        self.policy: Policy | None = None
        self.signing_keys: Mapping[str, bytes] | None = None
        self.host_keys: Mapping[str, bytes] = {}


def live_config(directory: Path, *functions: Any, **settings: Any) -> LiveConfig:
    """A real live configuration with some handler functions; `settings` are its sections."""
    file = directory / "agent.yaml"
    tree = {
        "server": {"url": "https://server.test"},
        "deployment": DEPLOYMENT,
        "data_dir": str(directory / "data"),
        "spool": {"min_free_bytes": 0},
        **settings,
    }
    file.write_text(json.dumps(tree))
    live = LiveConfig(Source(file=file, environ={}, overrides={}))
    for function in functions:
        for each in handlers_of(function, "test"):
            live.registry.add(each)
    return live


def job(
    command: str = "pay",
    *,
    command_id: str = "cmd_1",
    lease_id: str = "lease_1",
    attempt: int = 1,
    params: bytes | dict[str, Any] = b"{}",
    directory: Path = Path("/nowhere"),
    asked_at: float = 1000.0,
    seconds: float = 60.0,
    deadline_at: float | None = None,
    **envelope: Any,
) -> Job:
    """A lease; `params` is a body, or a params object as on the wire."""
    if isinstance(params, bytes):
        params = {"mode": "inline", "inlineBase64": b64encode(params).decode()}
    lease: dict[str, Any] = {
        "leaseId": lease_id,
        "leaseExpiresAt": "2026-11-24T10:00:00Z",
        "commandId": command_id,
        "attempt": attempt,
        "envelope": {
            "protocol": "arc.v1",
            "deploymentId": DEPLOYMENT,
            "target": {"resourceId": "default", "resourceType": "daemon"},
            "commandId": command_id,
            "attempt": attempt,
            "command": command,
            "params": params,
            "responseHandling": {
                "maxInlineBytes": 1000,
                "submitResponseUrl": f"https://server.test/v1/commands/{command_id}/response",
                "storageUploadRequest": {
                    "backend": {
                        "type": "http",
                        "url": "https://server.test/blob",
                        "method": "PUT",
                        "headers": {},
                    },
                    "expiration": "2026-11-24T10:00:00Z",
                    "operation": "put",
                    "path": "p",
                },
            },
            **envelope,
        },
    }
    return Job(
        lease=decode(msgspec.json.encode(lease), LeaseInfo),
        lease_url="https://server.test/v1/commands/leases",
        asked_at=asked_at,
        seconds=seconds,
        deadline_at=deadline_at,
        directory=directory,
    )


def held(of: Job) -> HeldLease:
    """The entry of a job in the lease table."""
    return HeldLease(
        lease_id=of.lease.lease_id,
        command_id=of.lease.command_id,
        command=of.lease.envelope.command,
        attempt=of.lease.attempt,
        asked_at=of.asked_at,
        seconds=of.seconds,
    )


def source(data: bytes = b"{}") -> ParamsSource:
    """Params in memory."""
    return ParamsSource(data=data, size=len(data))


def source_file(path: Path, data: bytes) -> ParamsSource:
    """Params in a file."""
    path.write_bytes(data)
    return ParamsSource(file=path, size=len(data))
