"""Time that tests move, and answers as the server words them."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any


def status(state: str, result: bytes | None = None, **more: Any) -> dict[str, Any]:
    """A status answer for `cmd_1`."""
    answer: dict[str, Any] = {
        "commandId": "cmd_1",
        "state": state,
        "attempt": 1,
        "target": {"resourceId": "default", "resourceType": "daemon"},
    }
    if result is not None:
        body = {"mode": "inline", "inlineBase64": b64encode(result).decode()}
        answer["response"] = {"status": "success", "response": body}
    return answer | more


def created(state: str = "PENDING", **more: Any) -> dict[str, Any]:
    """A create answer for `cmd_1`."""
    answer = {"commandId": "cmd_1", "state": state, "inlineAllowedUpTo": 150_000, "next": "poll"}
    return answer | more


def upload_to(url: str) -> dict[str, Any]:
    """Return what a create answer says about where to upload."""
    backend = {
        "type": "http",
        "url": url,
        "method": "PUT",
        "headers": {"x-ms-blob-type": "BlockBlob"},
    }
    request = {
        "backend": backend,
        "expiration": "2100-01-01T00:00:00Z",
        "operation": "put",
        "path": "p",
    }
    return {"putRequest": request, "expiresAt": "2100-01-01T00:00:00Z"}


def download_from(url: str, size: int | None) -> dict[str, Any]:
    """A success response whose body is in storage."""
    backend = {"type": "http", "url": url, "method": "GET", "headers": {}}
    request = {
        "backend": backend,
        "expiration": "2100-01-01T00:00:00Z",
        "operation": "get",
        "path": "p",
    }
    return {
        "status": "success",
        "response": {"mode": "storage", "size": size, "storageGetRequest": request},
    }


def error(code: str, message: str = "said so") -> str:
    """An error body."""
    return json.dumps({"code": code, "message": message, "retryable": False})
