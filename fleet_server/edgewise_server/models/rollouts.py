"""Rollouts, the devices that they exposed, and the history of decisions with reasons.

Times are seconds since the epoch.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import Index
from sqlmodel import Field

from edgewise_server.models.base import JsonValue, Table


class Rollout(Table, table=True):
    """One rollout. Among the rollouts of a model, the one with the highest `number` holds a device."""

    __tablename__ = "rollouts"
    __table_args__: ClassVar[dict[str, bool]] = {"sqlite_autoincrement": True}

    number: int | None = Field(default=None, primary_key=True)
    id: str = Field(max_length=64, unique=True)
    name: str = Field(default="", max_length=200)
    model: str = Field(max_length=64, index=True)
    version: int
    group: str = Field(max_length=64)
    plan: dict[str, Any] = Field(default_factory=dict, sa_type=JsonValue)
    """`phases`, `gates`, `confirm_within_s`, `max_concurrent`, `rate_per_minute`, as asked for."""
    offline_after_s: float = 30.0
    status: str = Field(max_length=16, index=True)
    phase: int = 0
    phase_started_at: float
    gates_from: float = 0.0
    reason: str = Field(default="", max_length=2000)
    created_at: float
    finished_at: float | None = None
    created_by: str = Field(default="", max_length=200)


class RolloutDevice(Table, table=True):
    """A device that a rollout exposed to its version."""

    __tablename__ = "rollout_devices"

    rollout_id: str = Field(primary_key=True, max_length=64, foreign_key="rollouts.id", ondelete="CASCADE")
    device_id: str = Field(primary_key=True, max_length=64, foreign_key="devices.id", ondelete="CASCADE", index=True)
    sha256: str = Field(max_length=64)
    previous: dict[str, Any] | None = Field(default=None, sa_type=JsonValue)
    """`SignedFile` of the model that the device was assigned before; what a revert names."""
    assignment_version: int
    outcome: str = Field(default="pending", max_length=16)
    exposed_at: float
    ended_at: float | None = None
    reverted_at: float | None = None
    error_code: str = Field(default="", max_length=64)
    error: str = Field(default="", max_length=2000)


class RolloutHistory(Table, table=True):
    """What was decided about a rollout, when, and why. Never changed."""

    __tablename__ = "rollout_history"
    __table_args__ = (Index("ix_rollout_history_rollout_id_id", "rollout_id", "id"),)

    id: int | None = Field(default=None, primary_key=True)
    rollout_id: str = Field(max_length=64, foreign_key="rollouts.id", ondelete="CASCADE")
    at: float
    kind: str = Field(max_length=32)
    device_id: str | None = Field(default=None, max_length=64)
    actor: str = Field(default="orchestrator", max_length=200)
    reason: str = Field(default="", max_length=2000)
