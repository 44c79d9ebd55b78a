"""What the routes of rollouts take and give, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from edgewise_protocol.bounds import MAX_CONFIRM_WITHIN_S
from pydantic import BaseModel, Field

from edgewise_server.api.schemas import NAME, Body
from edgewise_server.rollout.plan import MAX_PHASES, MAX_SOAK_S


class PhaseIn(Body):
    percent: int = Field(ge=1, le=100, examples=[10])
    min_devices: int = Field(1, ge=0, le=1_000_000)
    soak_s: float = Field(0, ge=0, le=MAX_SOAK_S)


class GatesIn(Body):
    max_failed_ratio: float = Field(0.0, ge=0, le=1)
    max_error_ratio: float = Field(0.05, ge=0, le=1)
    max_p95_ms: float | None = Field(None, gt=0)
    max_drift_alerts: int | None = Field(None, ge=0)
    min_reporting: float = Field(0.0, ge=0, le=1)
    min_requests: int = Field(20, ge=0)
    on_breach: Literal["abort", "pause"] = "abort"


class PlanIn(Body):
    """Also what a federation's `rollout` holds."""

    phases: list[PhaseIn] = Field(min_length=1, max_length=MAX_PHASES)
    gates: GatesIn = Field(default_factory=lambda: GatesIn.model_validate({}))
    confirm_within_s: int = Field(600, ge=1, le=MAX_CONFIRM_WITHIN_S)
    offline_after_s: float = Field(30, ge=0, le=30 * 24 * 3600)
    max_concurrent: int = Field(100, ge=1, le=1_000_000)
    rate_per_minute: int | None = Field(None, ge=1, le=1_000_000)


class RolloutIn(PlanIn):
    name: str = Field("", max_length=200)
    model: str = Field(pattern=NAME, max_length=64, examples=["digits"])
    version: int = Field(ge=1, le=2**31 - 1)
    group: str = Field(pattern=NAME, max_length=64, examples=["all"])


class ReasonIn(Body):
    reason: str = Field("", max_length=1_000)


class RolloutSummary(BaseModel):
    id: str
    name: str
    model: str
    version: int
    group: str
    status: str
    phase: int
    phases: list[dict[str, Any]]
    gates: dict[str, Any]
    confirm_within_s: int
    offline_after_s: float
    max_concurrent: int
    rate_per_minute: int | None
    created_at: datetime
    phase_started_at: datetime
    finished_at: datetime | None
    created_by: str
    reason: str


class RolloutCounts(BaseModel):
    cohort: int
    exposed: int
    pending: int
    committed: int
    failed: int
    reverted: int
    offline: int
    unfit: int = Field(description="devices of the group that are online, and that no bundle of the version fits")
    barred: int = Field(0, description="devices of the group that are online, and get no new model as they are")


class RolloutDeviceOut(BaseModel):
    device_id: str
    state: str = Field(description="pending, committed, failed or reverted")
    reported: str = Field("", description="what a pending device says that it does: downloading, probation, ...")
    outcome: str = Field(description="pending, committed or failed; stays when the device is reverted")
    sha256: str
    previous_version: int | None
    assignment_version: int
    exposed_at: datetime
    ended_at: datetime | None
    reverted_at: datetime | None
    error_code: str
    error: str


class BarredOut(BaseModel):
    device_id: str
    reason: str = Field(description="code: `agent-too-old`", examples=["agent-too-old"])


class DecisionOut(BaseModel):
    at: datetime
    kind: str
    device_id: str | None
    actor: str
    reason: str


class RolloutDetail(RolloutSummary):
    counts: RolloutCounts
    devices: list[RolloutDeviceOut]
    barred: list[BarredOut] = Field(description="devices that wait for a newer agent, at most 200")
    history: list[DecisionOut]


class Rollouts(BaseModel):
    rollouts: list[RolloutSummary]
