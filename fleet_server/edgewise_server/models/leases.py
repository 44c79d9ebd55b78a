"""Leases: which process may move things forward, until when."""

from __future__ import annotations

from sqlmodel import Field

from edgewise_server.models.base import Table


class Lease(Table, table=True):
    """One row a lease. Times are seconds since the epoch."""

    __tablename__ = "leases"

    name: str = Field(primary_key=True, max_length=64)
    holder: str = Field(max_length=64)
    expires_at: float
