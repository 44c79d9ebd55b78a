"""Content-addressed files that the store holds."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger
from sqlmodel import Field

from edgewise_server.models.base import Table, UtcDateTime, utc_now


class Blob(Table, table=True):
    """A stored file. Its chunk index is a blob too."""

    __tablename__ = "blobs"

    sha256: str = Field(primary_key=True, max_length=64)
    size: int = Field(sa_type=BigInteger)
    chunk_index: str = Field(default="", max_length=64)
    """SHA-256 of its chunk index (`edgewise_protocol.chunks`); empty for an index."""
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
