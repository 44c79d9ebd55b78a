"""What devices tell: stored messages, how far each stream is stored, counters, drift scores, alerts.

Times are seconds since the epoch; `at` is the device's clock, `received_at` the server's.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Index
from sqlmodel import Field

from edgewise_server.models.base import JsonValue, Table


class StoredMessage(Table, table=True):
    """An event, a telemetry or a drift message. (device, stream, seq) names it for good."""

    __tablename__ = "messages"
    __table_args__ = (
        Index("ix_messages_device_id_kind_received_at", "device_id", "kind", "received_at"),
        Index("ix_messages_received_at", "received_at"),
    )

    device_id: str = Field(primary_key=True, max_length=64, foreign_key="devices.id", ondelete="CASCADE")
    stream: str = Field(primary_key=True, max_length=64)
    seq: int = Field(primary_key=True, sa_type=BigInteger)
    kind: str = Field(max_length=16)
    """`event`, `telemetry`, `drift`, or `refused`: the payload is kept as it came, and breaks the contract."""
    at: float
    received_at: float
    payload: bytes


class StreamCursor(Table, table=True):
    """How far a device's stream is stored without a gap."""

    __tablename__ = "stream_cursors"

    device_id: str = Field(primary_key=True, max_length=64, foreign_key="devices.id", ondelete="CASCADE")
    stream: str = Field(primary_key=True, max_length=64)
    through: int = Field(default=0, sa_type=BigInteger)
    highest: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """Highest sequence that is stored; above `through` where a message beyond a gap came."""
    changed_at: float = 0.0


class ModelWindow(Table, table=True):
    """Counters of one model in one telemetry window of one device.

    The index grows at one end for each version: one that began with the device would dirty a page for each row.
    """

    __tablename__ = "model_windows"
    __table_args__ = (Index("ix_model_windows_model_version_received_at", "model", "version", "received_at"),)

    id: int | None = Field(default=None, primary_key=True)
    device_id: str = Field(max_length=64, foreign_key="devices.id", ondelete="CASCADE")
    model: str = Field(max_length=64)
    version: int
    at: float
    received_at: float
    requests: int = Field(default=0, sa_type=BigInteger)
    errors: int = Field(default=0, sa_type=BigInteger)
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    max_ms: float = 0.0


class DriftWindow(Table, table=True):
    """One window of sketches of one device, and its scores once the orchestrator has judged it."""

    __tablename__ = "drift_windows"
    __table_args__ = (
        Index("ix_drift_windows_model_version_received_at", "model", "version", "received_at"),
        Index("ix_drift_windows_scored_id", "scored", "id"),
    )

    id: int | None = Field(default=None, primary_key=True)
    device_id: str = Field(max_length=64, foreign_key="devices.id", ondelete="CASCADE", index=True)
    model: str = Field(max_length=64)
    version: int
    at: float
    received_at: float
    samples: int = Field(sa_type=BigInteger)
    sketches: bytes
    """JSON of `dict[str, FeatureSketch]`."""
    simulated: bool = False
    scored: bool = False
    sha256: str = Field(default="", max_length=64)
    """The bundle whose baseline it was judged against; empty where there is none."""
    drifted: bool = False
    severe: bool = False
    scores: list[dict[str, Any]] = Field(default_factory=list, sa_type=JsonValue)


class DriftTrack(Table, table=True):
    """How many windows in a row were bad or good, per device, model and version."""

    __tablename__ = "drift_tracks"

    device_id: str = Field(primary_key=True, max_length=64, foreign_key="devices.id", ondelete="CASCADE")
    model: str = Field(primary_key=True, max_length=64)
    version: int = Field(primary_key=True)
    bad: int = 0
    good: int = 0
    open: bool = False


class Alert(Table, table=True):
    """Something that a person should look at."""

    __tablename__ = "alerts"
    __table_args__ = (Index("ix_alerts_model_version_closed_at", "model", "version", "closed_at"),)

    id: str = Field(primary_key=True, max_length=64)
    kind: str = Field(max_length=32)
    severity: str = Field(max_length=16)
    model: str = Field(max_length=64)
    version: int
    device_id: str = Field(max_length=64, foreign_key="devices.id", ondelete="CASCADE", index=True)
    opened_at: float
    closed_at: float | None = None
    acked_at: float | None = None
    acked_by: str | None = Field(default=None, max_length=200)
    reason: str = Field(default="", max_length=2000)
    features: list[str] = Field(default_factory=list, sa_type=JsonValue)
    simulated: bool = False
