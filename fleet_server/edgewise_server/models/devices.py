"""Devices, how they came in, their groups, and certificates that no longer count."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import false
from sqlmodel import Field

from edgewise_server.models.base import JsonValue, Table, UtcDateTime, utc_now

_EMPTY_LIST: Final[dict[str, Any]] = {"server_default": "[]"}


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
    replaces: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """The device of that name exists: whoever uses the token takes its place."""


class Device(Table, table=True):
    """A device: its identity, what it says of itself, what the director last told it."""

    __tablename__ = "devices"

    id: str = Field(primary_key=True, max_length=64)
    channel: str = Field(max_length=64, index=True)
    enrolled_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
    certificate_serial: str = Field(max_length=40, index=True)
    """Hexadecimal serial number of the newest certificate."""
    certificate_not_after: datetime = Field(sa_type=UtcDateTime)
    key_sha256: str = Field(default="", max_length=64, sa_column_kwargs={"server_default": ""})
    """SHA-256 of the SubjectPublicKeyInfo of the registered key: who holds it may renew."""
    next_key_sha256: str = Field(default="", max_length=64, sa_column_kwargs={"server_default": ""})
    """Key of a certificate that was issued by renewal and has not been seen in use yet; empty for none."""
    next_serial: str = Field(default="", max_length=40, sa_column_kwargs={"server_default": ""})
    next_not_after: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    decommission_by: datetime | None = Field(default=None, sa_type=UtcDateTime)
    """When the device is decommissioned even if it has not reported that it runs nothing any more."""
    decommissioned_at: datetime | None = Field(default=None, sa_type=UtcDateTime)

    births: list[dict[str, Any]] = Field(default_factory=list, sa_type=JsonValue, sa_column_kwargs=_EMPTY_LIST)
    """The last starts of the agent that were born with this identity; see `edgewise_server.services.clones`."""
    cloned_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    cloned_instances: list[str] = Field(default_factory=list, sa_type=JsonValue, sa_column_kwargs=_EMPTY_LIST)
    """Fingerprints of the two machines that take turns with this identity."""

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
