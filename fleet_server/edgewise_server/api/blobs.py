"""Routes: content-addressed files, streamed to disk and from it."""

from __future__ import annotations

from edgewise_protocol.bounds import MIB
from edgewise_protocol.names import check_sha256
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from edgewise_server.api.auth import OperatorOrWorker, ViewerOrWorker
from edgewise_server.api.deps import ContextDep
from edgewise_server.api.schemas import BlobOut
from edgewise_server.blobs.store import Incoming
from edgewise_server.context import Context
from edgewise_server.db import SessionDep
from edgewise_server.errors import InvalidError, NotFoundError
from edgewise_server.models.blobs import Blob
from edgewise_server.services import audit, blobs

router = APIRouter(tags=["blobs"])


@router.put(
    "/blobs/{sha256}",
    status_code=201,
    summary="Upload a file under its digest; 200 when it is there already",
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
    responses={200: {"model": BlobOut}},
)
async def put_blob(
    sha256: str, request: Request, response: Response, context: ContextDep, who: OperatorOrWorker
) -> BlobOut:
    check_sha256(sha256)
    try:
        known = await run_in_threadpool(_known, context, sha256, _announced(request))
        if known is not None:
            async for _ in request.stream():
                pass  # the client may only read the answer after it has sent everything
            response.status_code = 200
            return known
        with context.blobs.receive(context.settings.max_blob_bytes) as incoming:
            await _receive(request, incoming)
            return await run_in_threadpool(_commit, context, incoming, sha256, who.name)
    except ClientDisconnect as error:
        raise InvalidError("the upload ended before the file was complete") from error


@router.head("/blobs/{sha256}", include_in_schema=False)
@router.get("/blobs/{sha256}", summary="Download a file; ranges are supported", response_class=FileResponse)
def get_blob(sha256: str, session: SessionDep, context: ContextDep, _: ViewerOrWorker) -> FileResponse:
    path = context.blobs.path(sha256)
    if blobs.find(session, sha256) is None or not path.is_file():
        raise NotFoundError(f"there is no blob {sha256}")
    return FileResponse(path, media_type="application/octet-stream")


async def _receive(request: Request, incoming: Incoming) -> None:
    """Write the body in pieces of about a MiB, off the event loop."""
    pending = bytearray()
    async for piece in request.stream():
        pending += piece
        if len(pending) >= MIB:
            await run_in_threadpool(incoming.write, bytes(pending))
            pending.clear()
    await run_in_threadpool(incoming.write, bytes(pending))


def _announced(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def _known(context: Context, sha256: str, announced: int) -> BlobOut | None:
    with context.database.session(read_only=True) as session:
        blob = blobs.find(session, sha256)
        if blob is not None and blob.chunk_index and context.blobs.exists(sha256):
            return _out(blob)
        blobs.check_quota(session, announced, context.settings.blob_quota_bytes)
    return None


def _commit(context: Context, incoming: Incoming, sha256: str, actor: str) -> BlobOut:
    with context.database.session(read_only=True) as session:
        blobs.check_quota(session, incoming.size, context.settings.blob_quota_bytes)
    stored = incoming.commit(sha256)
    with context.database.session() as session:
        blob = blobs.register(session, stored)
        audit.record(session, actor, "blob.add", sha256, {"size": stored.size})
        return _out(blob)


def _out(blob: Blob) -> BlobOut:
    return BlobOut(sha256=blob.sha256, size=blob.size, chunk_index=blob.chunk_index)
