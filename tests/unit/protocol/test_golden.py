"""Messages as each generation writes them, a file each, checked against docs/protocol.md, Types.

`v1-` and `v3-` are what public servers and clients of that generation write, `arc-` is ours, `all-`
is the same for everyone. What we read we write again byte for byte, but for the vectors with a
`.rewritten` file next to them: those are written by others only, in ways that we never use.
"""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from arc_protocol.codec import decode, encode
from arc_protocol.errors import InvalidCommand
from arc_protocol.messages import (
    agents,
    base,
    bodies,
    bootstrap,
    commands,
    errors,
    events,
    leases,
    waiting,
)
from arc_protocol.messages.agents import AgentList, AgentRegistration
from arc_protocol.messages.bodies import CommandResponse
from arc_protocol.messages.bootstrap import BootstrapRequest, BootstrapResponse
from arc_protocol.messages.commands import (
    AttemptList,
    CommandCounts,
    CommandList,
    CommandStatus,
    CreateCommandRequest,
    CreateCommandResponse,
    Payload,
    RetryRequest,
    UploadCompleteRequest,
    UploadCompleteResponse,
)
from arc_protocol.messages.errors import ErrorBody
from arc_protocol.messages.events import EventList, EventsRequest
from arc_protocol.messages.leases import (
    Envelope,
    LeaseRequest,
    LeaseResponse,
    ReleaseRequest,
    RenewRequest,
    RenewResponse,
    RespondRequest,
    RespondResponse,
)

GOLDEN: Final = Path(__file__).with_name("golden")

VECTORS: Final[dict[str, Any]] = {
    "v1-create-minimal": CreateCommandRequest,
    "v1-create-rust": CreateCommandRequest,
    "v1-create-ts": CreateCommandRequest,
    "v3-create-storage": CreateCommandRequest,
    "v3-create-storage-unknown-size": CreateCommandRequest,
    "v3-create-ts": CreateCommandRequest,
    "arc-create": CreateCommandRequest,
    "arc-create-waiting": CreateCommandRequest,
    "arc-retry-request": RetryRequest,
    "v3-bootstrap-receiver": BootstrapRequest,
    "v3-bootstrap-sender": BootstrapRequest,
    "v3-bootstrapped-receiver": BootstrapResponse,
    "v3-bootstrapped-sender": BootstrapResponse,
    "v1-created": CreateCommandResponse,
    "v1-created-pushed": CreateCommandResponse,
    "v3-created-failed": CreateCommandResponse,
    "v3-created-upload": CreateCommandResponse,
    "arc-created-upload": CreateCommandResponse,
    "arc-created-ended": CreateCommandResponse,
    "all-upload-complete": UploadCompleteRequest,
    "all-upload-completed": UploadCompleteResponse,
    "v1-status-expired": CommandStatus,
    "v1-status-pending": CommandStatus,
    "v1-status-succeeded": CommandStatus,
    "v1-status-succeeded-storage": CommandStatus,
    "v3-status-failed": CommandStatus,
    "v3-status-failed-without-response": CommandStatus,
    "v3-status-succeeded": CommandStatus,
    "arc-status-dispatched": CommandStatus,
    "arc-status-succeeded": CommandStatus,
    "arc-status-waiting": CommandStatus,
    "all-response-error": CommandResponse,
    "all-response-error-details": CommandResponse,
    "all-response-inline": CommandResponse,
    "all-response-storage": CommandResponse,
    "v3-response-storage-nulls": CommandResponse,
    "v1-payload": Payload,
    "all-payload-put": Payload,
    "v1-lease-request": LeaseRequest,
    "v3-lease-request": LeaseRequest,
    "arc-lease-request": LeaseRequest,
    "all-lease-response-empty": LeaseResponse,
    "v1-lease-response": LeaseResponse,
    "v3-lease-response": LeaseResponse,
    "arc-lease-response": LeaseResponse,
    "all-envelope": Envelope,
    "v3-envelope-nulls": Envelope,
    "v3-release": ReleaseRequest,
    "arc-release": ReleaseRequest,
    "arc-renew-request": RenewRequest,
    "arc-renew-response": RenewResponse,
    "arc-respond-request": RespondRequest,
    "arc-respond-response": RespondResponse,
    "arc-events-request": EventsRequest,
    "arc-events": EventList,
    "arc-attempts": AttemptList,
    "arc-counts": CommandCounts,
    "arc-create-tagged": CreateCommandRequest,
    "arc-list": CommandList,
    "arc-agent": AgentRegistration,
    "arc-agents": AgentList,
    "v1-error": ErrorBody,
    "arc-error": ErrorBody,
}

ONLY_READ: Final = {
    "v1-create-ts": "milliseconds, where we write 0 or 6 digits of a second",
    "v1-create-rust": "+00:00 and nanoseconds: to_rfc3339() of the Rust senders",
    "v3-create-ts": "milliseconds, and the target before the params",
    "v3-create-storage-unknown-size": "null where we leave out, and a field that we do not know",
    "v3-created-failed": "null where we leave out",
    "v3-created-upload": "fractions of 1 and 9 digits, expiresAt before putRequest",
    "v1-status-succeeded-storage": "size null, a local backend, nanoseconds",
    "v3-response-storage-nulls": "null where we leave out",
    "v3-lease-request": "the target after the numbers",
    "v1-lease-response": "nanoseconds",
    "v3-envelope-nulls": "null where we leave out, +00:00",
    "v1-error": "fields of the manager that no client needs",
}


def vector(name: str) -> bytes:
    """The bytes of a file, without the newline at its end."""
    return (GOLDEN / f"{name}.json").read_bytes().removesuffix(b"\n")


@pytest.mark.parametrize("name", sorted(VECTORS.keys() - ONLY_READ.keys()))
def test_a_message_is_read_and_written_byte_for_byte(name: str) -> None:
    message = decode(vector(name), VECTORS[name])

    assert encode(message) == vector(name)


@pytest.mark.parametrize("name", sorted(ONLY_READ))
def test_a_message_that_only_others_write_is_read_and_written_our_way(name: str) -> None:
    message = decode(vector(name), VECTORS[name])

    assert encode(message) == vector(f"{name}.rewritten")
    assert message == decode(vector(f"{name}.rewritten"), VECTORS[name])


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_no_message_that_we_write_has_a_null_or_an_offset(name: str) -> None:
    written = encode(decode(vector(name), VECTORS[name]))

    assert b"null" not in written
    assert b"+00:00" not in written


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_optional_fields_may_be_null_and_unknown_ones_are_ignored(name: str) -> None:
    document = json.loads(vector(name))
    fields = {field.encode_name for kind in _structs(VECTORS[name]) for field in _optional(kind)}
    noisy = {**dict.fromkeys(fields - document.keys()), "unknownField": [{"x": None}], **document}

    assert decode(json.dumps(noisy).encode(), VECTORS[name]) == decode(vector(name), VECTORS[name])


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_no_required_field_may_be_left_out(name: str) -> None:
    document = json.loads(vector(name))
    optional = {field.encode_name for kind in _structs(VECTORS[name]) for field in _optional(kind)}
    known = {field.encode_name for kind in _structs(VECTORS[name]) for field in _all(kind)}
    required = (document.keys() & (known | {"status"})) - optional

    for field in required:
        less = {key: value for key, value in document.items() if key != field}
        with pytest.raises(InvalidCommand, match=f"^{field}: "):
            decode(json.dumps(less).encode(), VECTORS[name])


def test_every_file_is_used_and_every_message_has_one() -> None:
    files = {path.name.removesuffix(".json") for path in GOLDEN.iterdir()}
    rewritten = {f"{name}.rewritten" for name in ONLY_READ}
    parts = {
        kind
        for module in (agents, bodies, bootstrap, commands, errors, events, leases, waiting)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, base.Message)
    } - {base.Message}
    whole = {kind for value in VECTORS.values() for kind in _structs(value)}
    nested = {
        base.CommandTarget, bodies.HttpBackend, bodies.LocalBackend, bodies.PresignedRequest,
        bodies.InlineBody, bodies.StorageBody, commands.StorageUpload, commands.AttemptInfo,
        leases.TraceContext,
        leases.ResponseHandling, leases.LeaseInfo, leases.RenewedLease, agents.HandlerInfo,
        agents.HeldCommand, agents.AgentInfo, agents.AgentStatus, leases.SubmittedResponse,
        leases.RefusedResponse, events.Progress, events.LogLine, events.RecordedLine,
        agents.DeploymentPresence, agents.PushCircuitInfo, agents.ReceiverInfo, waiting.Waiting,
        waiting.WaitingLease,
    }  # fmt: skip

    assert files == VECTORS.keys() | rewritten
    assert parts == whole | nested


def _structs(kind: Any) -> tuple[Any, ...]:
    """The structs of a union, or the one."""
    return getattr(kind, "__args__", (kind,))


def _all(kind: Any) -> Any:
    from msgspec.structs import fields

    return fields(kind)


def _optional(kind: Any) -> Any:
    return [field for field in _all(kind) if not field.required]
