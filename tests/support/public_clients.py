"""The requests of public `alien-commands` clients, header by header, and what these read.

Written by hand from what is known of the 1.x and 3.x senders and receivers. The checks are those
that the clients make themselves: where one would break, the assertion does.
"""

from __future__ import annotations

import http.client
import json
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

FETCH = {
    "accept": "*/*",
    "accept-language": "*",
    "sec-fetch-mode": "cors",
    "user-agent": "node",
    "accept-encoding": "gzip, deflate",
}
"""What Node's fetch adds to every request."""
REQWEST = {"accept": "*/*"}
"""What Rust's reqwest adds: no user agent, no encodings."""
JSON = {"content-type": "application/json"}
STATES = {"PENDING_UPLOAD", "PENDING", "DISPATCHED", "SUCCEEDED", "FAILED", "EXPIRED"}
TERMINAL = {"SUCCEEDED", "FAILED", "EXPIRED"}
DAEMON = {"resourceId": "default", "resourceType": "daemon"}
_Z_ONLY = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.(\d{3}|\d{6}|\d{9}))?Z")
"""All that the 3.x TypeScript clients take for a timestamp."""


@dataclass(frozen=True)
class Answer:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, which must be JSON and say so."""
        assert self.headers["content-type"].startswith("application/json"), self
        return json.loads(self.body)


class Wire:
    """One kept-alive connection of a client, which sends exactly what it is told."""

    def __init__(self, url: str, added: dict[str, str]) -> None:
        """`added` is what the client's library adds to every request."""
        parts = urlsplit(url)
        self.origin = url
        self.host = parts.netloc
        self._added = added
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=30)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def send(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None = None
    ) -> Answer:
        """One request; `target` is a path or a URL of this origin, sent as it stands."""
        target = target.removeprefix(self.origin)
        assert target.startswith("/"), f"a URL of another origin: {target}"
        self._connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        length = (
            {} if body is None and method == "GET" else {"content-length": str(len(body or b""))}
        )
        for name, value in {"host": self.host, **self._added, **headers, **length}.items():
            self._connection.putheader(name, value)
        self._connection.endheaders(body)
        response = self._connection.getresponse()
        answer = Answer(
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
        )
        assert "content-encoding" not in answer.headers
        return answer


class PublicClient:
    """What all of them share: a connection, a token and a deployment."""

    def __init__(self, url: str, token: str, deployment_id: str, added: dict[str, str]) -> None:
        self.wire = Wire(url, added)
        self.bearer = {"authorization": f"Bearer {token}"}
        self.deployment_id = deployment_id

    def post(self, target: str, message: Any) -> Answer:
        """JSON with a bearer token."""
        body = json.dumps(message, separators=(",", ":")).encode()
        return self.wire.send("POST", target, {**self.bearer, **JSON}, body)


class PublicSender(PublicClient):
    """Create inline, at any size, and poll until the end."""

    def create(self, command: str, params: bytes, *, query: str = "", **fields: Any) -> Any:
        """The answer of create, as far as every sender needs it."""
        message = {
            "deploymentId": self.deployment_id,
            "command": command,
            "params": {"mode": "inline", "inlineBase64": b64encode(params).decode()},
            **fields,
        }
        answer = self.post(f"/v1/commands{query}", message)
        assert answer.status == 200, answer
        check_created(created := answer.json())
        return created

    def look(self, command_id: str) -> Any:
        """The answer of status: any but 200 ends a public sender."""
        answer = self.wire.send("GET", f"/v1/commands/{command_id}", self.bearer)
        assert answer.status == 200, answer
        check_status(status := answer.json())
        assert status["commandId"] == command_id
        return status

    def result(self, status: Any) -> bytes:
        """The bytes of a success: inline, or fetched without a token as the request says."""
        body = status["response"]["response"]
        if body["mode"] == "inline":
            return b64decode(body["inlineBase64"], validate=True)
        backend = body["storageGetRequest"]["backend"]
        answer = self.wire.send(backend["method"], backend["url"], backend["headers"])
        assert answer.status == 200, answer
        return answer.body


class Poller(PublicClient):
    """A 1.x consumer: no target, ten leases of a minute, absolute URLs only, never a release."""

    target = "/v1/commands/leases"

    def lease(self) -> list[Any]:
        """The leases of one poll."""
        request = {"deploymentId": self.deployment_id, "maxLeases": 10, "leaseSeconds": 60}
        answer = self.post(self.target, request)
        assert answer.status == 200, answer
        for lease in answer.json()["leases"]:
            check_lease(lease)
        return answer.json()["leases"]

    def url(self, reference: str) -> str:
        """1.x cannot resolve: reqwest refuses a relative URL."""
        assert urlsplit(reference).scheme in ("http", "https"), reference
        return reference

    def params(self, envelope: Any) -> bytes:
        """The bytes of the params, fetched without a token if need be."""
        body = envelope["params"]
        if body["mode"] == "inline":
            return b64decode(body["inlineBase64"], validate=True)
        backend = body["storageGetRequest"]["backend"]
        answer = self.wire.send(backend["method"], self.url(backend["url"]), backend["headers"])
        assert answer.status == 200, answer
        return answer.body

    def submit(self, envelope: Any, response: Any) -> Answer:
        """PUT to the envelope's URL, byte for byte, without a token."""
        url = self.url(envelope["responseHandling"]["submitResponseUrl"])
        return self.wire.send("PUT", url, JSON, json.dumps(response).encode())

    def succeed(self, envelope: Any, data: bytes) -> Answer:
        """Inline up to what the envelope allows, else uploaded first."""
        handling = envelope["responseHandling"]
        if len(data) <= handling["maxInlineBytes"]:
            body: Any = {"mode": "inline", "inlineBase64": b64encode(data).decode()}
        else:
            backend = handling["storageUploadRequest"]["backend"]
            url = self.url(backend["url"])
            uploaded = self.wire.send(backend["method"], url, backend["headers"], data)
            assert 200 <= uploaded.status < 300, uploaded
            body = {"mode": "storage", "size": len(data), "storagePutUsed": True}
        return self.submit(envelope, {"status": "success", "response": body})


class Receiver(Poller):
    """A 3.x receiver: names its target, resolves URLs, releases what it cannot run."""

    resource: Any = DAEMON

    def lease(self, maximum: int = 1, seconds: int = 60) -> list[Any]:
        """The leases of one poll: anything but 200 ends the process."""
        request = {
            "deploymentId": self.deployment_id,
            "maxLeases": maximum,
            "leaseSeconds": seconds,
            "target": self.resource,
        }
        answer = self.post(self.target, request)
        assert answer.status == 200, answer
        for lease in answer.json()["leases"]:
            check_lease(lease)
        return answer.json()["leases"]

    def url(self, reference: str) -> str:
        """Joined to the lease endpoint as RFC 3986 says."""
        return urljoin(f"{self.wire.origin}{self.target}", reference)

    def release(self, lease_id: str) -> Answer:
        """With the body that receivers send."""
        return self.post(f"{self.target}/{lease_id}/release", {"leaseId": lease_id})


# What clients check


def check_timestamp(value: Any) -> None:
    """3.x TypeScript ends on anything but Z."""
    assert _Z_ONLY.fullmatch(value), value


def check_integer(value: Any, least: int) -> None:
    """JSON integers only; 1.0 is none."""
    assert type(value) is int, value
    assert value >= least


def check_target(target: Any) -> None:
    """Required by 3.x in every status and envelope."""
    assert target["resourceType"] in ("worker", "container", "daemon")
    assert target["resourceId"]
    assert ":" not in target["resourceId"]


def check_presigned(request: Any, operation: str) -> None:
    """All fields there, headers too; http only: few clients take a local file."""
    backend = request["backend"]
    assert backend["type"] == "http"
    assert urlsplit(backend["url"]).scheme in ("http", "https"), "senders and 1.x do not resolve"
    assert backend["method"] == operation.upper()
    assert all(type(value) is str for value in backend["headers"].values())
    check_timestamp(request["expiration"])
    assert request["operation"] == operation
    assert type(request["path"]) is str


def check_body(body: Any) -> None:
    """Inline in strict base64, or readable from storage."""
    assert body["mode"] in ("inline", "storage")
    if body["mode"] == "inline":
        b64decode(body["inlineBase64"], validate=True)
        return
    if body.get("size") is not None:
        check_integer(body["size"], 0)
    check_presigned(body["storageGetRequest"], "get")


def check_created(created: Any) -> None:
    """Return what the 3.x TypeScript sender's schema asks for; 1.x needs less."""
    assert created["commandId"]
    assert created["state"] in STATES
    assert created["next"] in ("poll", "upload")
    check_integer(created["inlineAllowedUpTo"], 1)
    assert type(created["created"]) is bool, "3.3.49 asks for it"
    assert (created["next"] == "upload") == (created.get("storageUpload") is not None)
    if created.get("storageUpload") is not None:
        check_presigned(created["storageUpload"]["putRequest"], "put")
        check_timestamp(created["storageUpload"]["expiresAt"])


def check_status(status: Any) -> None:
    """Return what the 3.x TypeScript sender's schema asks for, and that a failure says why."""
    assert status["state"] in STATES
    check_integer(status["attempt"], 1)
    check_target(status["target"])
    response = status.get("response")
    assert response is None or status["state"] in TERMINAL
    if status["state"] in ("SUCCEEDED", "FAILED"):
        assert response["status"] == ("success" if status["state"] == "SUCCEEDED" else "error")
    if response is not None and response["status"] == "success":
        check_body(response["response"])
    elif response is not None:
        assert type(response["code"]) is type(response["message"]) is str
        assert type(response.get("details")) in (str, type(None))


def check_lease(lease: Any) -> None:
    """One lease that is not whole ends every 3.x receiver of its target."""
    assert lease["leaseId"]
    check_timestamp(lease["leaseExpiresAt"])
    check_integer(lease["attempt"], 1)
    envelope = lease["envelope"]
    assert envelope["protocol"] == "arc.v1"
    assert envelope["deploymentId"]
    assert envelope["command"]
    assert envelope["commandId"] == lease["commandId"]
    assert envelope["attempt"] == lease["attempt"]
    check_target(envelope["target"])
    if envelope.get("deadline") is not None:
        check_timestamp(envelope["deadline"])
    check_body(envelope["params"])
    handling = envelope["responseHandling"]
    check_integer(handling["maxInlineBytes"], 1)
    assert handling["submitResponseUrl"]
    check_presigned(handling["storageUploadRequest"], "put")
