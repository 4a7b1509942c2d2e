"""Routes of blobs: signed URLs, streamed in both directions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

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
from arc_server.service.blob_paths import attempts_directory, is_result
from arc_server.service.uploads import Arrival, Uploads


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
        if not call.is_signed:  # an administrator's
            expected = call.http.content_length or 0
            kind = is_result(path)
            await blobs.write(
                path, call.chunks(limit), limit, expected_bytes=expected, is_result=kind
            )
            return empty_answer()
        arrival = await uploads.admit(path, call.http.content_length or 0)
        stale: Sequence[str] = ()
        if arrival.is_latest_result:
            beside = await blobs.directories(attempts_directory(path))
            stale = [each for each in beside if each != path.rpartition("/")[0]]
        try:
            written = await blobs.write(
                path,
                _counted(call.chunks(limit), arrival),
                limit,
                expected_bytes=call.http.content_length or int(size or 0),
                is_result=is_result(path),
            )
            if not await uploads.arrived(path, written, arrival):  # it ended meanwhile
                await blobs.delete(path)
                raise Conflict("the command has ended, or was leased again, while the body came")
        finally:
            arrival.end()
        if stale:
            await blobs.delete_all(stale)
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


async def _counted(chunks: AsyncIterator[bytes], arrival: Arrival) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        arrival.take(len(chunk))
        yield chunk
