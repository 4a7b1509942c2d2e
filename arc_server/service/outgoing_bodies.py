"""Bodies on their way out: inline, or by presigned URLs that are made afresh at each read."""

from __future__ import annotations

from datetime import datetime, timedelta

from arc_protocol.messages.bodies import (
    BodySpec,
    CommandResponse,
    ErrorResponse,
    InlineBody,
    PresignedRequest,
    StorageBody,
    SuccessResponse,
)
from arc_protocol.messages.commands import StorageUpload
from arc_server.ports.blobs import BlobStore
from arc_server.ports.clock import Clock
from arc_server.ports.records import (
    AwaitedBlob,
    CommandRecord,
    DamagedBody,
    ReadResponse,
    StoredBlob,
    StoredBody,
    StoredError,
    StoredInline,
    StoredParams,
    StoredSuccess,
)
from arc_server.service.blob_paths import response_path
from arc_server.service.limits import CommandLimits


class OutgoingBodies:
    """Presents stored bodies to readers, and lets clients upload new ones."""

    def __init__(self, blobs: BlobStore, clock: Clock, limits: CommandLimits) -> None:
        self._blobs = blobs
        self._clock = clock
        self._limits = limits

    def params_upload(
        self, params: AwaitedBlob, base_url: str, by: str | None = None
    ) -> StorageUpload:
        """Let a sender upload its params, of the size that it announced.

        `by` is the token or credential that a URL is made for, here and below: the URL ends when
        that is revoked.
        """
        expires_at = self._clock.now() + timedelta(seconds=self._limits.upload_url_seconds)
        request = self._blobs.presign(
            "put", params.path, base_url, expires_at, size=params.size, by=by
        )
        return StorageUpload(put_request=request, expires_at=request.expiration)

    def response_upload(
        self, command: CommandRecord, base_url: str, expires_at: datetime
    ) -> PresignedRequest:
        """Let the holder of the latest lease upload its response until then."""
        return self._blobs.presign(
            "put", response_path(command), base_url, expires_at, by=command.lease_credential
        )

    def params(self, params: StoredParams, base_url: str, by: str | None = None) -> BodySpec | None:
        """Return params for a reader; None while there are none to read."""
        if isinstance(params, StoredInline | StoredBlob):
            return self._body(params, base_url, by)
        return None

    def response(
        self, response: ReadResponse | None, base_url: str, by: str | None = None
    ) -> CommandResponse | None:
        """Return a response for a reader; a damaged one is presented as an error."""
        if response is None:
            return None
        if isinstance(response, StoredSuccess):
            return SuccessResponse(response=self._body(response.body, base_url, by))
        if isinstance(response, StoredError):
            return ErrorResponse(
                code=response.code, message=response.message, details=response.details
            )
        return _damaged(response)

    def _body(self, body: StoredBody, base_url: str, by: str | None) -> BodySpec:
        if isinstance(body, StoredInline):
            return InlineBody.of(body.data)
        expires_at = self._clock.now() + timedelta(seconds=self._limits.download_url_seconds)
        return StorageBody(
            size=body.size,
            storage_get_request=self._blobs.presign("get", body.path, base_url, expires_at, by=by),
            storage_put_used=True,
        )


def _damaged(body: DamagedBody) -> ErrorResponse:
    if body.is_removed:
        return ErrorResponse(
            code="RESPONSE_REMOVED", message="the response was removed after its time"
        )
    return ErrorResponse(
        code="SERIALIZATION_FAILED",
        message="the stored response is damaged and cannot be read",
        details=body.reason,
    )
