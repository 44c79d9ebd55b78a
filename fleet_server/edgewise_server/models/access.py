"""Who may call the API, and what they did."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlmodel import Field

from edgewise_server.models.base import JsonValue, Table, UtcDateTime, utc_now


class Token(Table, table=True):
    """A bearer token; only its SHA-256 is kept."""

    __tablename__ = "tokens"

    id: str = Field(primary_key=True, max_length=64)
    name: str = Field(max_length=64)
    role: str = Field(max_length=16)
    sha256: str = Field(max_length=64, unique=True)
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class AuditEntry(Table, table=True):
    """One act that changed something, and who asked for it."""

    __tablename__ = "audit"

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now, index=True)
    actor: str = Field(max_length=80)
    """Name of the token, or `server`."""
    action: str = Field(max_length=64, index=True)
    subject: str = Field(max_length=300)
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=JsonValue)
