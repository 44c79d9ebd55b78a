"""What signed metadata name: model → version → bundle per profile. Built from them alone."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlmodel import Field

from edgewise_server.models.base import JsonValue, Table, UtcDateTime, utc_now


class ModelVersion(Table, table=True):
    """A version of a model, in whatever channels and for whatever profiles."""

    __tablename__ = "model_versions"

    model: str = Field(primary_key=True, max_length=64)
    version: int = Field(primary_key=True)
    stage: str = Field(default="candidate", max_length=16)
    """`candidate`, `production` or `archived`."""
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)


class Target(Table, table=True):
    """A file that a trusted role has signed for, or once had."""

    __tablename__ = "targets"

    path: str = Field(primary_key=True, max_length=300)
    role: str = Field(max_length=80, index=True)
    channel: str = Field(max_length=64, index=True)
    kind: str = Field(max_length=16)
    """`inference` or `training`."""
    model: str = Field(max_length=64, index=True)
    version: int
    profile: str = Field(max_length=64)
    sha256: str = Field(max_length=64, index=True, foreign_key="blobs.sha256")
    length: int = Field(sa_type=BigInteger)
    custom: dict[str, Any] = Field(sa_type=JsonValue)
    """`edgewise_protocol.targets.TargetCustom`."""
    manifest: dict[str, Any] = Field(sa_type=JsonValue)
    """`edgewise_protocol.manifest.Manifest` of the bundle."""
    provenance: dict[str, Any] | None = Field(default=None, sa_type=JsonValue)
    """The bundle's in-toto statement."""
    trusted: bool = True
    """Whether the newest trusted metadata still name it, as it is."""
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=utc_now)
