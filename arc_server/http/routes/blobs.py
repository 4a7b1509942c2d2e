"""Routes of blobs: signed URLs, streamed in both directions."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import hdrs, web

from arc_protocol.errors import Conflict
from arc_server.blobs.local import LocalBlobStore
from arc_server.http.answers import SERVER, empty_answer
from arc_server.http.calls import Call
from arc_server.http.ranges import byte_range
from arc_server.http.routing import Route
from arc_server.http.signed_queries import is_signed
from arc_server.ports.clock import Clock
from arc_server.server_keys import BLOB, Signer
from arc_server.service.blob_paths import is_result
from arc_server.service.uploads import Uploads


def routes(
    blobs: LocalBlobStore, uploads: Uploads, signer: Signer, clock: Clock, max_blob_bytes: int
) -> Sequence[Route]:
    """Return the routes of a blob store; `signer` signs its URLs, `uploads` judges what comes."""

    async def read(call: Call) -> web.StreamResponse:
        (path,) = call.arguments
        headers = call.http.headers
        async with blobs.open(path) as blob:
            wanted = headers.get(hdrs.RANGE)
            if headers.get(hdrs.IF_RANGE, blob.etag) != blob.etag:
                wanted = None  # the client has the beginning of another version
            part = byte_range(wanted, blob.size)
            start, end = part or (0, blob.size)
            answer = web.StreamResponse(
                status=200 if part is None else 206,
                headers={
                    hdrs.SERVER: SERVER,
                    hdrs.CONTENT_TYPE: "application/octet-stream",
                    hdrs.CONTENT_LENGTH: str(end - start),
                    hdrs.ACCEPT_RANGES: "bytes",
                    hdrs.CACHE_CONTROL: "no-store",
                    hdrs.ETAG: blob.etag,
                },
            )
            if part is not None:
                answer.headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{end - 1}/{blob.size}"
            await call.finished(answer).prepare(call.http)
            if call.http.method != hdrs.METH_HEAD:
                async for chunk in blob.chunks(start, end):
                    await answer.write(chunk)
            await answer.write_eof()
        return answer

    async def write(call: Call) -> web.StreamResponse:
        (path,) = call.arguments
        size = call.query("size") if call.is_signed else None
        limit = max_blob_bytes if size is None else min(int(size), max_blob_bytes)
        if call.is_signed:
            await uploads.check(path)
        await blobs.write(
            path,
            call.chunks(limit),
            limit,
            expected_bytes=call.http.content_length or int(size or 0),
            is_result=is_result(path),
        )
        if call.is_signed and not await uploads.is_wanted(path):  # it ended meanwhile
            await blobs.delete(path)
            raise Conflict("the command has ended, or was leased again, while the body came")
        return empty_answer()

    def is_blob_signed(call: Call) -> bool | None:
        (path,) = call.arguments
        operation = "put" if call.http.method == hdrs.METH_PUT else "get"
        return is_signed(call, signer, clock.now(), BLOB, operation, path, field="sig")

    return tuple(
        Route(
            method=method,
            path="/blobs/**",
            takes_json=False,
            handler=handler,
            signature=is_blob_signed,
        )
        for method, handler in (("GET", read), ("PUT", write))
    )
