"""The state of a base-protocol server: commands, leases, blobs, without HTTP or the server's code.

`era=1` is the public server of 1.x, `era=3` that of 3.x, in what a client can see of them.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

INLINE_LIMIT = 150_000
TERMINAL = ("SUCCEEDED", "FAILED", "EXPIRED")
Json = dict[str, Any]
Era = Literal[1, 3]


class Refusal(Exception):
    """An error answer in the manager's shape."""

    def __init__(self, status: int, code: str, message: str, **context: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.context = status, code, message, context

    def body(self) -> Json:
        """The JSON of the answer; context names are snake_case, as the manager's are."""
        return {
            "code": self.code,
            "message": self.message,
            **({"context": self.context} if self.context else {}),
            "retryable": self.status >= 500,
            "internal": False,
            "httpStatusCode": self.status,
        }


@dataclass
class Command:
    """One stored command."""

    command_id: str
    deployment_id: str
    command: str
    target: Json
    deadline: datetime | None
    state: str = "PENDING"
    attempt: int = 1
    params: bytes | None = None
    """None until they are uploaded."""
    response: Json | None = None
    lease_id: str | None = None
    lease_until: datetime | None = None
    holders: list[str] = field(default_factory=list)
    """Every lease that was ever granted, oldest first."""

    @property
    def is_terminal(self) -> bool:
        """Return True if nothing can change any more."""
        return self.state in TERMINAL


def timestamp(moment: datetime) -> str:
    """Nine digits and Z, as chrono writes them."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


class BaseProtocolCommands:
    """The commands of a server of the base protocol, and its clock, which tests move."""

    def __init__(self, era: Era, base: str, target: Json) -> None:
        """`base` ends in /v1. `target` is the one that 3.x knows; 1.x knows none."""
        self.era, self.base, self.target = era, base, target
        self.commands: dict[str, Command] = {}
        self.blobs: dict[str, bytes] = {}
        self._keys: dict[tuple[str, ...], str] = {}
        self.is_local = False
        """Uploads go to files of this host, as those of the public stand-alone server do."""
        self._ids = itertools.count(1)
        self._skew = timedelta()

    def now(self) -> datetime:
        """The server's clock."""
        return datetime.now(UTC) + self._skew

    def advance(self, seconds: float) -> None:
        """Move the server's clock."""
        self._skew += timedelta(seconds=seconds)

    # commands

    def create(self, request: Json) -> Json:
        """POST /commands."""
        deadline = self._deadline(request)
        target = self._resolve(request.get("targetResourceId"))
        key = self._key(request, target)
        if key in self._keys:
            return self._created(self.commands[self._keys[key]], is_fresh=False)
        command = Command(
            command_id=f"cmd_{next(self._ids):028d}",
            deployment_id=request["deploymentId"],
            command=request["command"],
            target=target,
            deadline=deadline,
        )
        params = request["params"]
        if params["mode"] == "inline":
            command.params = b64decode(params["inlineBase64"], validate=True)
        elif (params.get("size") or 0) > INLINE_LIMIT:
            command.state = "PENDING_UPLOAD"
        self.commands[command.command_id] = command
        if request.get("idempotencyKey") is not None:
            self._keys[key] = command.command_id
        return self._created(command, is_fresh=True)

    def status(self, command_id: str) -> Json:
        """GET /commands/{id}. An overdue command expires by being looked at."""
        command = self._find(command_id)
        self._expire(command)
        return {
            "commandId": command_id,
            "state": command.state,
            "attempt": command.attempt,
            **({"target": command.target} if self.era == 3 else {}),
            **({"response": command.response} if command.is_terminal and command.response else {}),
        }

    def upload_complete(self, command_id: str) -> Json:
        """POST /commands/{id}/upload-complete. The blob is not looked at."""
        command = self._find(command_id)
        if command.state != "PENDING_UPLOAD":
            raise self._no_transition(command, "PENDING")
        command.state = "PENDING"
        command.params = self.blobs.get(f"arc/commands/{command_id}/params", b"")
        return {"commandId": command_id, "state": command.state}

    def respond(self, command_id: str, response: Json) -> None:
        """PUT /commands/{id}/response: of any holder, the first counts."""
        command = self._find(command_id)
        if command.is_terminal:
            return
        if command.state != "DISPATCHED":
            raise self._no_transition(command, "SUCCEEDED")
        body = response.get("response") or {}
        if body.get("storagePutUsed") and not body.get("storageGetRequest"):
            body["storageGetRequest"] = self.presign("get", f"arc/commands/{command_id}/response")
        command.response = response
        command.state = "SUCCEEDED" if response["status"] == "success" else "FAILED"
        command.lease_id = None

    def result(self, command_id: str) -> bytes:
        """The bytes of a success, from wherever they are."""
        response = self._find(command_id).response or {}
        body = response["response"]
        if body["mode"] == "inline":
            return b64decode(body["inlineBase64"], validate=True)
        return self.blobs[f"arc/commands/{command_id}/response"]

    # leases

    def lease(self, request: Json) -> Json:
        """Answer POST /commands/leases at once, even if the request asks to wait."""
        seconds, wanted = request.get("leaseSeconds", 60), request.get("maxLeases", 1)
        leases: list[Json] = []
        for command in list(self.commands.values()):
            if len(leases) >= wanted:
                break
            if command.deployment_id != request["deploymentId"] or command.params is None:
                continue
            if self.era == 3 and command.target["resourceId"] != request["target"]["resourceId"]:
                continue
            if self._is_leasable(command):
                if self.era == 3 and command.target != request["target"]:
                    raise Refusal(500, "KV_OPERATION_FAILED", "index and registry disagree")
                leases.append(self._grant(command, seconds))
        return {"leases": leases}

    def release(self, lease_id: str) -> None:
        """POST /commands/leases/{id}/release."""
        for command in self.commands.values():
            if command.lease_id == lease_id and not self._has_lapsed(command):
                command.lease_id = None
                command.state = "PENDING"
                command.attempt += 1
                return
        raise Refusal(404, "LEASE_NOT_FOUND", f"no such lease: {lease_id}", lease_id=lease_id)

    def _is_leasable(self, command: Command) -> bool:
        """Return True if it is ready now, after looking at its deadline and its lease."""
        self._expire(command)
        if command.state == "DISPATCHED" and self._has_lapsed(command):
            command.attempt += 1 if self.era == 3 else 0  # 1.x does not count a lapse
            return True
        return command.state == "PENDING"

    def _grant(self, command: Command, seconds: int) -> Json:
        """A lease, as 1.x or 3.x writes it."""
        command.lease_id = f"lease_{next(self._ids):032d}"
        command.lease_until = self.now() + timedelta(seconds=seconds)
        command.holders.append(command.lease_id)
        command.state = "DISPATCHED"
        return {
            "leaseId": command.lease_id,
            "leaseExpiresAt": timestamp(command.lease_until),
            "commandId": command.command_id,
            "attempt": command.attempt,
            "envelope": self._envelope(command),
        }

    def _envelope(self, command: Command) -> Json:
        """1.x: absolute URLs, no target. 3.x: URLs relative to the lease endpoint."""
        params = command.params or b""
        path = f"arc/commands/{command.command_id}"
        if len(params) <= INLINE_LIMIT:
            body: Json = {"mode": "inline", "inlineBase64": b64encode(params).decode()}
        else:
            self.blobs.setdefault(f"{path}/params", params)
            get = self.presign("get", f"{path}/params", is_relative=self.era == 3)
            body = {"mode": "storage", "size": len(params), "storageGetRequest": get}
        return {
            "protocol": "arc.v1",
            "deploymentId": command.deployment_id,
            **({"target": command.target} if self.era == 3 else {}),
            "commandId": command.command_id,
            "attempt": command.attempt,
            **({"deadline": timestamp(command.deadline)} if command.deadline else {}),
            "command": command.command,
            "params": body,
            "responseHandling": {
                "maxInlineBytes": INLINE_LIMIT,
                "submitResponseUrl": self._response_url(command.command_id),
                "storageUploadRequest": self.presign(
                    "put", f"{path}/response", is_relative=self.era == 3
                ),
            },
        }

    # signatures

    def presign(self, operation: str, path: str, *, is_relative: bool = False) -> Json:
        """A PresignedRequest for one blob, for an hour."""
        expires = self.now() + timedelta(hours=1)
        signature = self.signature(operation, path, int(expires.timestamp()))
        query = f"expires={int(expires.timestamp())}&sig={signature}"
        prefix = "../storage" if is_relative else f"{self.base}/storage"
        return {
            "backend": {
                "type": "http",
                "url": f"{prefix}/{path}?{query}",
                "method": operation.upper(),
                "headers": {"x-ms-blob-type": "BlockBlob"} if operation == "put" else {},
            },
            "expiration": timestamp(expires),
            "operation": operation,
            "path": path,
        }

    def signature(self, purpose: str, subject: str, expires: int) -> str:
        """Return the hex of an HMAC; only this server knows what it is over."""
        message = f"{purpose}:{subject}:{expires}".encode()
        return hmac.new(b"the key of this fake", message, hashlib.sha256).hexdigest()

    def _response_url(self, command_id: str) -> str:
        """Where a response goes, pre-authorised."""
        expires = int(self.now().timestamp()) + 3600
        token = self.signature("response", command_id, expires)
        prefix = "" if self.era == 3 else f"{self.base}/commands/"
        return f"{prefix}{command_id}/response?response_token={token}&expires={expires}"

    # rules

    def _deadline(self, request: Json) -> datetime | None:
        """Judged before anything else, a repeat included."""
        if request.get("deadline") is None:
            return None
        deadline = datetime.fromisoformat(request["deadline"])
        if deadline <= self.now():
            raise Refusal(400, "INVALID_COMMAND", "deadline must be in the future")
        return deadline

    def _resolve(self, requested: str | None) -> Json:
        """The target: 1.x has one only; 3.x looks at the name."""
        if self.era == 1 or requested is None:
            return self.target
        if ":" in requested:
            raise Refusal(400, "COMMAND_TARGET_ID_INVALID", "target id contains ':'")
        if requested != self.target["resourceId"]:
            raise Refusal(404, "COMMAND_TARGET_NOT_FOUND", f"no target {requested!r}")
        return self.target

    def _key(self, request: Json, target: Json) -> tuple[str, ...]:
        """Return what makes two creates the same: in 1.x the bare key."""
        key = request.get("idempotencyKey")
        if self.era == 1:
            return (str(key),)
        return (request["deploymentId"], target["resourceId"], request["command"], str(key))

    def _created(self, command: Command, *, is_fresh: bool) -> Json:
        """The answer of create; a repeat never gets an upload."""
        answer: Json = {
            "commandId": command.command_id,
            "state": command.state,
            "inlineAllowedUpTo": INLINE_LIMIT,
            "next": "poll",
        }
        if is_fresh and command.state == "PENDING_UPLOAD":
            put = self.presign("put", f"arc/commands/{command.command_id}/params")
            if self.is_local:
                path = f"/srv/arc/{command.command_id}/params"
                put["backend"] = {"type": "local", "filePath": path, "operation": "put"}
            answer["next"] = "upload"
            answer["storageUpload"] = {"expiresAt": put["expiration"], "putRequest": put}
        return answer

    def _find(self, command_id: str) -> Command:
        """The command, or 404."""
        command = self.commands.get(command_id)
        if command is None:
            message = f"no such command: {command_id}"
            raise Refusal(404, "COMMAND_NOT_FOUND", message, command_id=command_id)
        return command

    def _expire(self, command: Command) -> None:
        """EXPIRED, if its time has come."""
        overdue = command.deadline is not None and self.now() > command.deadline
        if overdue and not command.is_terminal:
            command.state = "EXPIRED"

    def _has_lapsed(self, command: Command) -> bool:
        """Return True if it has no holder any more."""
        return command.lease_until is None or self.now() >= command.lease_until

    def _no_transition(self, command: Command, to: str) -> Refusal:
        """400, as the manager says it."""
        message = f"cannot go from {command.state} to {to}"
        return Refusal(
            400, "INVALID_STATE_TRANSITION", message, **{"from": command.state, "to": to}
        )
