"""Routes: telemetry, events, drift and alerts."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

import msgspec
from edgewise_protocol.messages import Event, Telemetry, decode
from fastapi import APIRouter, Query
from pydantic import BaseModel

from edgewise_server.api.auth import Operator, Viewer
from edgewise_server.api.deps import ContextDep
from edgewise_server.api.times import at
from edgewise_server.db import SessionDep
from edgewise_server.drift.judge import FeatureScore
from edgewise_server.drift.thresholds import DriftSettings
from edgewise_server.errors import InvalidError
from edgewise_server.models.telemetry import Alert, DriftWindow
from edgewise_server.services import audit, devices, monitoring
from edgewise_server.services.baselines import Baselines

router = APIRouter(tags=["monitoring"])
Limit = Annotated[int, Query(ge=1, le=1_000)]
MERGED_WINDOWS = 2_000
"""Windows that one request merges at most."""


class TelemetryOut(BaseModel):
    at: datetime
    received_at: datetime
    window_s: float
    models: list[dict[str, Any]]
    rss_mib: float
    cpu_s: float
    load1: float
    temperature_c: float | None
    outbox_messages: int
    outbox_dropped: int
    simulated: bool


class TelemetryList(BaseModel):
    telemetry: list[TelemetryOut]


class EventOut(BaseModel):
    at: datetime
    received_at: datetime
    kind: str
    code: str
    text: str
    data: dict[str, str | int | float | bool]


class Events(BaseModel):
    events: list[EventOut]


class FeatureOut(BaseModel):
    feature: str
    samples: int
    psi: float
    psi_threshold: float
    js: float
    js_threshold: float
    ks: float | None
    ks_threshold: float | None
    not_finite: float
    drifted: bool
    severe: bool


class WindowOut(BaseModel):
    device_id: str
    model: str
    version: int
    at: datetime
    received_at: datetime
    samples: int
    drifted: bool
    severe: bool
    sha256: str
    simulated: bool
    features: list[FeatureOut]


class MergedOut(BaseModel):
    start: datetime
    end: datetime
    devices: list[str]
    samples: int
    drifted: bool
    severe: bool
    features: list[FeatureOut]


class DriftOut(BaseModel):
    windows: list[WindowOut]
    merged: list[MergedOut] | None = None


class AlertOut(BaseModel):
    id: str
    kind: str
    severity: str
    model: str
    version: int
    device_id: str
    opened_at: datetime
    closed_at: datetime | None
    acked_at: datetime | None
    acked_by: str | None
    reason: str
    features: list[str]
    simulated: bool


class Alerts(BaseModel):
    alerts: list[AlertOut]


@router.get("/devices/{device_id}/telemetry", summary="A device's counters, newest first")
def telemetry(device_id: str, session: SessionDep, _: Viewer, limit: Limit = 100) -> TelemetryList:
    found = []
    for row in monitoring.messages_of(session, device_id, "telemetry", limit):
        message = decode(Telemetry, row.payload)
        fields = msgspec.to_builtins(message)
        known = {name: fields.get(name, getattr(message, name)) for name in TelemetryOut.model_fields.keys() - _TIMES}
        known["models"] = [msgspec.structs.asdict(counted) for counted in message.models]
        found.append(TelemetryOut(at=at(row.at), received_at=at(row.received_at), **known))
    return TelemetryList(telemetry=found)


@router.get("/devices/{device_id}/events", summary="What happened on a device, newest first")
def events(device_id: str, session: SessionDep, _: Viewer, limit: Limit = 100) -> Events:
    found = []
    for row in monitoring.messages_of(session, device_id, "event", limit):
        event = decode(Event, row.payload)
        found.append(
            EventOut(
                at=at(row.at),
                received_at=at(row.received_at),
                kind=event.kind,
                code=event.code,
                text=event.text,
                data=event.data,
            )
        )
    return Events(events=found)


@router.get("/drift", summary="Windows and their distances from the training baseline, newest first")
def drift(
    session: SessionDep,
    context: ContextDep,
    _: Viewer,
    model: str | None = None,
    version: int | None = None,
    device: str | None = None,
    group: str | None = None,
    window_s: Annotated[float, Query(ge=1, le=7 * 24 * 3600)] = 300.0,
    limit: Limit = 50,
) -> DriftOut:
    ids = _devices(session, device, group)
    found = monitoring.windows(session, model=model, version=version, device_ids=ids, limit=limit)
    if group is None:
        return DriftOut(windows=[_window(window) for window in found])
    if model is None or version is None:
        raise InvalidError("to merge a group's windows, name the model and the version")
    wide = monitoring.windows(
        session,
        model=model,
        version=version,
        device_ids=ids,
        since=time.time() - window_s * limit,
        limit=MERGED_WINDOWS,
    )
    merged = monitoring.merged(wide, Baselines(context.blobs), DriftSettings(), window_s)[:limit]
    return DriftOut(windows=[_window(window) for window in found], merged=[_merged(window) for window in merged])


@router.get("/alerts", summary="Alerts, newest first")
def alerts(
    session: SessionDep, _: Viewer, open_only: Annotated[bool, Query(alias="open")] = False, limit: Limit = 100
) -> Alerts:
    return Alerts(alerts=[_alert(alert) for alert in monitoring.alerts(session, only_open=open_only, limit=limit)])


@router.post("/alerts/{alert_id}/ack", summary="Somebody has seen the alert; it closes by itself when the drift ends")
def acknowledge(alert_id: str, session: SessionDep, who: Operator) -> AlertOut:
    alert = monitoring.acknowledge(session, alert_id, who.name, time.time())
    audit.record(session, who.name, "alert.ack", alert_id)
    return _alert(alert)


_TIMES = frozenset({"at", "received_at"})


def _devices(session: SessionDep, device: str | None, group: str | None) -> list[str] | None:
    if device is not None:
        return [devices.get(session, device).id]
    return None if group is None else [found.id for found in devices.in_group(session, group)]


def _features(scores: list[dict[str, Any]]) -> list[FeatureOut]:
    return [FeatureOut(**{name: score[name] for name in FeatureOut.model_fields}) for score in scores]


def _window(window: DriftWindow) -> WindowOut:
    return WindowOut(
        device_id=window.device_id,
        model=window.model,
        version=window.version,
        at=at(window.at),
        received_at=at(window.received_at),
        samples=window.samples,
        drifted=window.drifted,
        severe=window.severe,
        sha256=window.sha256,
        simulated=window.simulated,
        features=_features(window.scores),
    )


def _merged(window: monitoring.MergedWindow) -> MergedOut:
    names = FeatureOut.model_fields
    return MergedOut(
        start=at(window.start),
        end=at(window.end),
        devices=list(window.devices),
        samples=window.samples,
        drifted=window.score.drifted,
        severe=window.score.severe,
        features=[FeatureOut(**{name: getattr(score, name) for name in names}) for score in _scores(window)],
    )


def _scores(window: monitoring.MergedWindow) -> tuple[FeatureScore, ...]:
    return window.score.features


def _alert(alert: Alert) -> AlertOut:
    return AlertOut(
        id=alert.id,
        kind=alert.kind,
        severity=alert.severity,
        model=alert.model,
        version=alert.version,
        device_id=alert.device_id,
        opened_at=at(alert.opened_at),
        closed_at=at(alert.closed_at),
        acked_at=at(alert.acked_at),
        acked_by=alert.acked_by,
        reason=alert.reason,
        features=alert.features,
        simulated=alert.simulated,
    )
