"""The calls about leases: ask for leases, renew them, release them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec
import structlog

from arc_agent.net.connection import Answer, NoContact, ServerConnection
from arc_protocol.codec import UNREADABLE, decode
from arc_protocol.errors import InvalidCommand
from arc_protocol.messages.base import CONTROLS, INVISIBLE, MAX_NAME_LENGTH, Message
from arc_protocol.messages.leases import (
    LeaseInfo,
    LeaseRequest,
    ReleaseRequest,
    RenewRequest,
    RenewResponse,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_UNKNOWN_ROUTE: Final = (404, 405)
_RELEASE_TRIES: Final = 3
_LONGEST_SECONDS: Final = 86_400.0
"""A lease of more seconds, or of none, lasts as long as the agent asked for."""
_MOST_ATTEMPTS: Final = 2**53
_SPARE_BYTES: Final = 8 * 1024 * 1024
_LEASE_BYTES: Final = 8 * 1024 * 1024
"""The bound of an answer for each lease asked for: an envelope embeds params up to the server's
inline limit, 150 kB by default."""
_SPARE_VALUES: Final = 10_000
_LEASE_VALUES: Final = 200
"""The most values of an answer for each lease asked for, counted before they are decoded. A lease
has about 40; 40 MiB of empty objects would take 2 GB, and stop the event loop for a minute."""
_ID: Final = re.compile(r"(?!\.{1,2}\Z)[!-~]{1,256}", re.ASCII)
"""Ids become segments of paths and words of log lines: no spaces, no controls, not `.` or `..`."""
_SHOWN_CHARS: Final = 500
_UNFIT: Final = re.compile(f"[{CONTROLS}{INVISIBLE}]")


class BrokenLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that cannot be read, and the parts of it that can."""

    reason: str
    lease_id: str | None = None
    command_id: str | None = None
    command: str | None = None
    submit_url: str | None = None


class LeaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a lease request. A broken lease does not spoil the others."""

    leases: Sequence[LeaseInfo]
    broken: Sequence[BrokenLease]
    cancelled: Sequence[str]
    server_now: float | None
    """The server's time when it answered, as POSIX time."""
    shows_extensions: bool
    """The answer has a field that a server of the base protocol never sends."""


async def ask(
    connection: ServerConnection, url: str, request: LeaseRequest, *, timeout_seconds: float
) -> LeaseAnswer:
    """Ask for leases. Raises NoContact (Refused) for any other answer."""
    most_leases = request.max_leases or 1
    answer = await connection.call(
        "POST",
        url,
        request,
        timeout_seconds=timeout_seconds,
        max_bytes=_SPARE_BYTES + _LEASE_BYTES * most_leases,
    )
    if answer.status != 200:
        raise NoContact(f"the server answered {answer.status} to a lease request")
    most_values = _SPARE_VALUES + _LEASE_VALUES * most_leases
    if sum(map(answer.body.count, (b"[", b"{", b","))) > most_values:
        raise NoContact(f"a lease answer of more than {most_values} values")
    return _read(answer)


async def renew(
    connection: ServerConnection, request: RenewRequest, *, timeout_seconds: float
) -> RenewResponse | Answer:
    """Renew leases; return the bare answer if it is 404 or 405. Raises NoContact (Refused)."""
    url = connection.url("commands", "leases", "renew")
    answer = await connection.call("POST", url, request, timeout_seconds=timeout_seconds)
    if answer.status in _UNKNOWN_ROUTE:
        return answer
    if answer.status != 200:
        raise NoContact(f"the server answered {answer.status} to a renewal")
    try:
        renewed = decode(answer.body, RenewResponse)
        return msgspec.structs.replace(
            renewed, renewed=[each for each in renewed.renewed if is_sane(each.lease_seconds)]
        )
    except InvalidCommand as error:
        raise NoContact(f"a renewal's answer that cannot be read: {error.message}") from None


async def release(connection: ServerConnection, lease_id: str, reason: str) -> bool:
    """Release a lease, with three tries; return True on success. A lease not released lapses."""
    url = connection.url("commands", "leases", lease_id, "release")
    message = ReleaseRequest(lease_id=lease_id, reason=reason)
    for tries_left in reversed(range(_RELEASE_TRIES)):
        try:
            await connection.call("POST", url, message, timeout_seconds=5.0)
        except NoContact as error:
            if not tries_left:
                log.warning("lease.not_released", lease_id=lease_id, reason=error.reason)
        else:
            log.info("lease.released", lease_id=lease_id, reason=reason)
            return True
    return False


class _Lenient(Message, frozen=True, kw_only=True):
    """A lease answer whose leases are decoded one by one."""

    leases: list[msgspec.Raw]
    cancelled: list[str] | None = None


_LENIENT: Final = msgspec.json.Decoder(_Lenient)
_LEASE: Final = msgspec.json.Decoder(LeaseInfo)


def _read(answer: Answer) -> LeaseAnswer:
    """Read a lease answer. Raises NoContact when it is none."""
    try:
        lenient = _LENIENT.decode(answer.body)
    except UNREADABLE as error:
        raise NoContact(f"a lease answer that cannot be read: {error}") from None
    leases: list[LeaseInfo] = []
    broken: list[BrokenLease] = []
    for raw in lenient.leases:
        try:
            leases.append(_checked(_LEASE.decode(raw)))
        except (ValueError, *UNREADABLE) as error:
            broken.append(_salvage(raw, str(error)))
    return LeaseAnswer(
        leases=leases,
        broken=broken,
        cancelled=lenient.cancelled or [],
        server_now=answer.server_now(),
        shows_extensions=lenient.cancelled is not None
        or any(lease.lease_seconds is not None for lease in leases),
    )


def is_sane(seconds: float) -> bool:
    """Return True if a lease may last so long. For 0 seconds, renewal would never rest."""
    return 0.0 < seconds <= _LONGEST_SECONDS


def _checked(lease: LeaseInfo) -> LeaseInfo:
    """Return a lease whose texts fit into paths, logs and tables. Raises ValueError."""
    envelope = lease.envelope
    for name, text in (("leaseId", lease.lease_id), ("commandId", lease.command_id)):
        if not _ID.fullmatch(text):
            raise ValueError(f"{name}: not an id")
    if not 0 < lease.attempt <= _MOST_ATTEMPTS or envelope.attempt > _MOST_ATTEMPTS:
        raise ValueError("attempt: not a number of attempts")
    for name, text in (("command", envelope.command), ("deploymentId", envelope.deployment_id)):
        if len(text) > MAX_NAME_LENGTH or _UNFIT.search(text):
            raise ValueError(f"{name}: too long, or with control or invisible characters")
    if lease.lease_seconds is None or is_sane(lease.lease_seconds):
        return lease
    log.warning("lease.of_no_length", command_id=lease.command_id, seconds=lease.lease_seconds)
    return msgspec.structs.replace(lease, lease_seconds=None)


def _salvage(raw: msgspec.Raw, reason: str) -> BrokenLease:
    """Return what can be read of a broken lease."""
    try:
        tree: Any = msgspec.json.decode(raw)
    except UNREADABLE:
        return BrokenLease(reason=reason[:_SHOWN_CHARS])
    return BrokenLease(
        reason=reason[:_SHOWN_CHARS],
        lease_id=_id(tree, "leaseId"),
        command_id=_id(tree, "commandId") or _id(tree, "envelope", "commandId"),
        command=_UNFIT.sub("?", (_text(tree, "envelope", "command") or "")[:MAX_NAME_LENGTH]),
        submit_url=_text(tree, "envelope", "responseHandling", "submitResponseUrl"),
    )


def _id(tree: Any, *path: str) -> str | None:
    """Return the id at a path of a JSON tree; None when there is no valid id."""
    text = _text(tree, *path)
    return text if text is not None and _ID.fullmatch(text) else None


def _text(tree: Any, *path: str) -> str | None:
    """Return the text at a path of a JSON tree; None when there is none."""
    for name in path:
        if not isinstance(tree, dict):
            return None
        tree = cast("dict[str, Any]", tree).get(name)
    return tree if isinstance(tree, str) and tree else None
