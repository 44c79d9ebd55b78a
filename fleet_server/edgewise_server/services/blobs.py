"""Blobs: the store's files and their rows, kept in step."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func
from sqlmodel import Session, col, select

from edgewise_server.blobs.store import BlobStore, StoredBlob
from edgewise_server.db import hold_lock
from edgewise_server.errors import MissingBlobError, QuotaError
from edgewise_server.models.blobs import Blob

LOCK: Final = "blobs"
"""Held by whoever registers a blob or collects one."""


def find(session: Session, sha256: str) -> Blob | None:
    """The row of a blob, or None."""
    return session.get(Blob, sha256)


def require(session: Session, sha256: str) -> Blob:
    """The row of a blob that signed metadata name; raise `MissingBlobError` if it was not uploaded."""
    blob = session.get(Blob, sha256)
    if blob is None or blob.dropped:
        raise MissingBlobError(f"the blob {sha256} has not been uploaded")
    return blob


def used_bytes(session: Session) -> int:
    """Bytes of all blobs."""
    return int(session.exec(select(func.coalesce(func.sum(col(Blob.size)), 0)).where(~col(Blob.dropped))).one())


def check_quota(session: Session, size: int, quota: int) -> None:
    """Raise `QuotaError` if `size` more bytes do not fit."""
    used = used_bytes(session)
    if used + size > quota:
        raise QuotaError(
            f"the blob store holds {used} of {quota} bytes; {size} more do not fit: raise blob_quota_bytes"
        )


def register(session: Session, stored: StoredBlob) -> Blob:
    """The row of a stored file; makes it and its index's row unless they are there."""
    hold_lock(session, LOCK)
    blob = session.get(Blob, stored.sha256, populate_existing=True)
    if blob is not None:
        blob.dropped = False
    if blob is None:
        blob = Blob(sha256=stored.sha256, size=stored.size, chunk_index=stored.chunk_index)
        session.add(blob)
        session.flush()
    elif not blob.chunk_index:
        # it came as another file's index first
        blob.chunk_index = stored.chunk_index
    index = session.get(Blob, stored.chunk_index, populate_existing=True)
    if index is None:
        session.add(Blob(sha256=stored.chunk_index, size=stored.index_size))
    else:
        index.dropped = False
    session.flush()
    return blob


def add(session: Session, store: BlobStore, data: bytes) -> Blob:
    """Store bytes that the server itself made, such as a round's weights."""
    return register(session, store.put(data))
