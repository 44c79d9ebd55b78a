"""Devices, how they came in, their groups, and certificates that no longer count."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlmodel import Field

from edgewise_server.models.base import JsonValue, Table, UtcDateTime, utc_now


class Enrolment(Table, table=True):
    """A one-time token that takes one device into a channel; only its SHA-256 is kept."""

    __tablename__ = "enrolments"

    id: str = Field(primary_key=True, max_length=64)
    token_sha256: str = Field(max_length=64, unique=True)
    channel: str = Field(max_length=64)
    groups: list[str] = Field(default_factory=list, sa_type=JsonValue)
    name: str = Field(default="", max_length=64)
    created_by: str = Field(default="", max_length=64)
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    expires_at: datetime = Field(sa_type=UtcDateTime)
    used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    device_id: str = Field(default="", max_length=64)


class Device(Table, table=True):
    """A device: its identity, what it says of itself, what the director last told it."""

    __tablename__ = "devices"

    id: str = Field(primary_key=True, max_length=64)
    channel: str = Field(max_length=64, index=True)
    enrolled_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    certificate_serial: str = Field(max_length=40, index=True)
    """Hexadecimal serial number of the newest certificate."""
    certificate_not_after: datetime = Field(sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)

    facts: dict[str, Any] = Field(default_factory=dict, sa_type=JsonValue)
    """`edgewise_protocol.facts.DeviceFacts`."""
    simulated: bool = False

    online: bool = False
    session_id: str = Field(default="", max_length=64)
    """Session of the newest birth: a last will of another session is stale."""
    status_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    last_seen_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    serving_url: str = Field(default="", max_length=200)
    reported: dict[str, Any] | None = Field(default=None, sa_type=JsonValue)
    """Newest `edgewise_protocol.messages.Reported`."""

    assignment_version: int = 0
    """Version of the newest assignment that the director signed; 0 for none."""
    assignment: dict[str, Any] | None = Field(default=None, sa_type=JsonValue)
    """What it says: `deployment`, `expires`, `confirm_within_s`, `bundles` (model, version, path, sha256)."""


class DirectorCounter(Table, table=True):
    """Newest assignment version ever signed for an id. It outlives the device, so that an id
    that is used again does not meet its predecessor's assignments."""

    __tablename__ = "director_counters"

    device_id: str = Field(primary_key=True, max_length=64)
    version: int = 0


class Group(Table, table=True):
    """Devices by hand, or, with a query, by their facts."""

    __tablename__ = "groups"

    name: str = Field(primary_key=True, max_length=64)
    query: str = Field(default="", max_length=500)
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)


class Membership(Table, table=True):
    """A device in a group by hand."""

    __tablename__ = "memberships"

    group_name: str = Field(primary_key=True, max_length=64, foreign_key="groups.name", ondelete="CASCADE")
    device_id: str = Field(primary_key=True, max_length=64, foreign_key="devices.id", ondelete="CASCADE")


class RevokedCertificate(Table, table=True):
    """A certificate that stands in the CRL until it would have expired."""

    __tablename__ = "revoked_certificates"

    serial: str = Field(primary_key=True, max_length=40)
    device_id: str = Field(max_length=64)
    revoked_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    not_after: datetime = Field(sa_type=UtcDateTime)
