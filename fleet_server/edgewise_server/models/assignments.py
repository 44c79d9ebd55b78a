"""Assignments: the newest signed word on what each device runs."""

from __future__ import annotations

from typing import Any

from sqlmodel import Field

from edgewise_server.models.base import JsonValue, Table


class Assignment(Table, table=True):
    """One row a device, replaced by each newer version. Times are seconds since the epoch."""

    __tablename__ = "assignments"

    device_id: str = Field(primary_key=True, max_length=64, foreign_key="devices.id", ondelete="CASCADE")
    version: int
    """TUF version: only ever grows, whatever the model's version does."""
    channel: str = Field(max_length=64)
    deployment: str = Field(max_length=64, index=True)
    bundles: list[dict[str, Any]] = Field(default_factory=list, sa_type=JsonValue)
    """`SignedFile`s, one a model, possibly none."""
    confirm_within_s: int
    payload: bytes
    """The signed metadata, as retained."""
    issued_at: float
    expires_at: float = Field(index=True)
