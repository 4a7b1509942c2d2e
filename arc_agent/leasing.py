"""The calls about leases: asking for them, renewing them, giving them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec
import structlog

from arc_agent.connection import Answer, Connection, NoContact
from arc_protocol.errors import InvalidCommand
from arc_protocol.types import (
    LeaseInfo,
    LeaseRequest,
    Message,
    ReleaseRequest,
    RenewRequest,
    RenewResponse,
    decode,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_UNKNOWN_ROUTE: Final = (404, 405)
_RELEASE_TRIES: Final = 3


class BrokenLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that cannot be read, and what of it can."""

    reason: str
    lease_id: str | None = None
    command_id: str | None = None
    command: str | None = None
    submit_url: str | None = None


class LeaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a lease request brought. Each lease stands alone."""

    leases: Sequence[LeaseInfo]
    broken: Sequence[BrokenLease]
    cancelled: Sequence[str]
    server_now: float | None
    """The server's clock when it answered, as POSIX time."""
    shows_additions: bool
    """Whether the answer has a field that servers of part 1 only do not send."""


async def ask(
    connection: Connection, url: str, request: LeaseRequest, *, timeout_seconds: float
) -> LeaseAnswer:
    """Ask for leases. Raises NoContact (Refused) for anything but a lease answer."""
    answer = await connection.call("POST", url, request, timeout_seconds=timeout_seconds)
    if answer.status != 200:
        raise NoContact(f"the server answered {answer.status} to a lease request")
    return _read(answer)


async def renew(
    connection: Connection, request: RenewRequest, *, timeout_seconds: float
) -> RenewResponse | Answer:
    """Renew leases; the bare answer when it is 404 or 405. Raises NoContact (Refused)."""
    url = connection.url("commands", "leases", "renew")
    answer = await connection.call("POST", url, request, timeout_seconds=timeout_seconds)
    if answer.status in _UNKNOWN_ROUTE:
        return answer
    if answer.status != 200:
        raise NoContact(f"the server answered {answer.status} to a renewal")
    try:
        return decode(answer.body, RenewResponse)
    except InvalidCommand as error:
        raise NoContact(f"a renewal's answer that cannot be read: {error.message}") from None


async def release(connection: Connection, lease_id: str, reason: str) -> bool:
    """Give a lease back. Tries a few times; what stays held lapses by itself. True when it is."""
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
    """A lease answer whose entries are looked at one by one."""

    leases: list[msgspec.Raw]
    cancelled: list[str] | None = None


_LENIENT: Final = msgspec.json.Decoder(_Lenient)
_LEASE: Final = msgspec.json.Decoder(LeaseInfo)


def _read(answer: Answer) -> LeaseAnswer:
    """Take an answer apart. Raises NoContact when it is none."""
    try:
        lenient = _LENIENT.decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NoContact(f"a lease answer that cannot be read: {error}") from None
    leases: list[LeaseInfo] = []
    broken: list[BrokenLease] = []
    for raw in lenient.leases:
        try:
            leases.append(_LEASE.decode(raw))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            broken.append(_salvage(raw, str(error)))
    return LeaseAnswer(
        leases=leases,
        broken=broken,
        cancelled=lenient.cancelled or [],
        server_now=answer.server_now(),
        shows_additions=lenient.cancelled is not None
        or any(lease.lease_seconds is not None for lease in leases),
    )


def _salvage(raw: msgspec.Raw, reason: str) -> BrokenLease:
    """What can be read of a lease that cannot be read as one."""
    try:
        tree: Any = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return BrokenLease(reason=reason)
    return BrokenLease(
        reason=reason,
        lease_id=_text(tree, "leaseId"),
        command_id=_text(tree, "commandId") or _text(tree, "envelope", "commandId"),
        command=_text(tree, "envelope", "command"),
        submit_url=_text(tree, "envelope", "responseHandling", "submitResponseUrl"),
    )


def _text(tree: Any, *path: str) -> str | None:
    """The text at a path of a JSON tree, None when there is none."""
    for name in path:
        if not isinstance(tree, dict):
            return None
        tree = cast("dict[str, Any]", tree).get(name)
    return tree if isinstance(tree, str) and tree else None
