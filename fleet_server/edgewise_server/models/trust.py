"""Signed documents that the server has verified, and the fleet's CA certificates."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import LargeBinary
from sqlmodel import Field

from edgewise_server.models.base import JsonValue, Table, UtcDateTime, utc_now


class TrustMetadata(Table, table=True):
    """One version of one TUF role's metadata, byte for byte."""

    __tablename__ = "trust_metadata"

    role: str = Field(primary_key=True, max_length=80)
    version: int = Field(primary_key=True)
    payload: bytes = Field(sa_type=LargeBinary)
    sha256: str = Field(max_length=64)
    expires_at: datetime = Field(sa_type=UtcDateTime)
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)


class FleetCa(Table, table=True):
    """The certificates of the ceremony, and the newest revocation list; one row."""

    __tablename__ = "fleet_ca"

    id: int = Field(default=1, primary_key=True)
    root_pem: str
    intermediate_pem: str
    crl_number: int = 0
    crl_pem: str = ""
    crl_expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Attestation(Table, table=True):
    """A DSSE envelope over a bundle's provenance, verified against one role's keys."""

    __tablename__ = "attestations"

    bundle_sha256: str = Field(primary_key=True, max_length=64)
    role: str = Field(primary_key=True, max_length=80)
    """TUF role of whose keys at least one signed."""
    keyids: list[str] = Field(sa_type=JsonValue)
    envelope: dict[str, Any] = Field(sa_type=JsonValue)
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
