"""Jobs that a worker takes: work that needs torch, or a key that the server must not hold."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index
from sqlmodel import Field

from edgewise_server.models.base import JsonValue, Table


class Job(Table, table=True):
    """Times are seconds since the epoch."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_state_kind_created_at", "state", "kind", "created_at"),)

    id: str = Field(primary_key=True, max_length=64)
    kind: str = Field(max_length=32)
    state: str = Field(max_length=16)
    payload: dict[str, Any] = Field(default_factory=dict, sa_type=JsonValue)
    result: dict[str, Any] | None = Field(default=None, sa_type=JsonValue)
    error: str = Field(default="", max_length=2000)
    worker: str | None = Field(default=None, max_length=200)
    attempts: int = 0
    created_at: float
    claimed_at: float | None = None
    heartbeat_at: float | None = None
    finished_at: float | None = None
