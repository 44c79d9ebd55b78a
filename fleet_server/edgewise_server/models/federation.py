"""Federations, their rounds, and each client's part in a round. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Any

from sqlalchemy import UniqueConstraint
from sqlmodel import Field

from edgewise_server.models.base import JsonValue, Table


class Federation(Table, table=True):
    __tablename__ = "federations"

    id: str = Field(primary_key=True, max_length=64)
    name: str = Field(max_length=200)
    model: str = Field(max_length=64)
    channel: str = Field(max_length=64)
    group: str | None = Field(default=None, max_length=64)
    training_path: str = Field(max_length=512)
    base_version: int | None = None
    rounds_wanted: int
    settings: dict[str, Any] = Field(default_factory=dict, sa_type=JsonValue)
    """`FederationSettings` of `edgewise_server.federation.facts`."""
    rollout: dict[str, Any] | None = Field(default=None, sa_type=JsonValue)
    """Plan of the rollout that a passed promotion starts."""
    profiles: list[str] = Field(default_factory=list, sa_type=JsonValue)
    status: str = Field(max_length=16, index=True)
    reason: str = Field(default="", max_length=2000)
    weights_sha256: str | None = Field(default=None, max_length=64)
    """Newest global weights: the initial ones, then each closed round's result."""
    initial_sha256: str | None = Field(default=None, max_length=64)
    promote_job: str | None = Field(default=None, max_length=64)
    promoted_version: int | None = None
    rollout_id: str | None = Field(default=None, max_length=64)
    created_at: float
    finished_at: float | None = None
    created_by: str = Field(default="", max_length=200)


class Round(Table, table=True):
    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("federation_id", "number"),)

    id: str = Field(primary_key=True, max_length=64)
    """`round_id` on the wire."""
    federation_id: str = Field(max_length=64, foreign_key="federations.id", ondelete="CASCADE")
    number: int
    state: str = Field(max_length=16, index=True)
    reason: str = Field(default="", max_length=2000)
    job_id: str | None = Field(default=None, max_length=64)
    body: dict[str, Any] = Field(default_factory=dict, sa_type=JsonValue)
    training: dict[str, Any] = Field(default_factory=dict, sa_type=JsonValue)
    weights: dict[str, Any] = Field(default_factory=dict, sa_type=JsonValue)
    offer: bytes | None = None
    started_at: float
    deadline: float | None = None
    closed_at: float | None = None
    result_sha256: str | None = Field(default=None, max_length=64)
    metrics: dict[str, Any] = Field(default_factory=dict, sa_type=JsonValue)


class RoundClient(Table, table=True):
    """A device that announced an update. Its chunks below `chunks_through` are on the disk."""

    __tablename__ = "round_clients"

    round_id: str = Field(primary_key=True, max_length=64, foreign_key="rounds.id", ondelete="CASCADE")
    device_id: str = Field(primary_key=True, max_length=64, foreign_key="devices.id", ondelete="CASCADE")
    state: str = Field(max_length=16)
    length: int
    sha256: str = Field(max_length=64)
    samples: int
    metrics: dict[str, Any] = Field(default_factory=dict, sa_type=JsonValue)
    chunks_through: int = 0
    error: str = Field(default="", max_length=2000)
    simulated: bool = False
    announced_at: float
    changed_at: float
