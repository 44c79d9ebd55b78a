"""Content-addressed files that the store holds."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, false
from sqlmodel import Field

from edgewise_server.models.base import Table, UtcDateTime, utc_now


class Blob(Table, table=True):
    """A stored file. Its chunk index is a blob too."""

    __tablename__ = "blobs"

    sha256: str = Field(primary_key=True, max_length=64)
    size: int = Field(sa_type=BigInteger)
    chunk_index: str = Field(default="", max_length=64)
    """SHA-256 of its chunk index (`edgewise_protocol.chunks`); empty for an index."""
    dropped: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """Its file was collected: only targets that no role signs any more name it. An upload brings it back."""
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
