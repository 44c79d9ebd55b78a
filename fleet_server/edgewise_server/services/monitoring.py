"""Judges windows of sketches against baselines, opens and closes alerts, and merges windows of many devices."""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from edgewise_protocol.errors import SketchError
from edgewise_protocol.sketches import Baseline, FeatureSketch, merge
from sqlmodel import Session, col, select

from edgewise_server.drift.judge import WindowScore, judge
from edgewise_server.drift.thresholds import DriftSettings
from edgewise_server.drift.tracking import Track, advance
from edgewise_server.errors import NotFoundError
from edgewise_server.models.base import new_id
from edgewise_server.models.devices import Device
from edgewise_server.models.jobs import Job
from edgewise_server.models.telemetry import Alert, DriftTrack, DriftWindow, StoredMessage
from edgewise_server.services import assignments, devices, jobs, registry
from edgewise_server.services.baselines import Baselines
from edgewise_server.services.rollout_facts import reported_of

DRIFT: Final = "drift"
BATCH: Final = 100
"""Windows that are judged in one transaction."""
_SKETCHES: Final = msgspec.json.Decoder(dict[str, FeatureSketch])

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MergedWindow:
    """The windows of several devices in one slice of time, merged, and judged."""

    start: float
    end: float
    devices: tuple[str, ...]
    samples: int
    score: WindowScore


def score_pending(session: Session, baselines: Baselines, settings: DriftSettings, now: float) -> int:
    """Judge windows that came since; returns how many."""
    pending = session.exec(
        select(DriftWindow).where(~col(DriftWindow.scored)).order_by(col(DriftWindow.id)).limit(BATCH)
    ).all()
    for window in pending:
        device = session.get(Device, window.device_id)
        window.sha256 = bundle_digest(session, device, window.model, window.version) if device is not None else ""
        baseline = baselines.of(window.sha256) if window.sha256 else None
        score = judge(_SKETCHES.decode(window.sketches), baseline or Baseline(), settings)
        window.scored, window.drifted, window.severe = True, score.drifted, score.severe
        window.scores = [dataclasses.asdict(feature) for feature in score.features]
        session.add(window)
        _track(session, window, score, settings, now)
    session.flush()
    return len(pending)


def bundle_digest(session: Session, device: Device, model: str, version: int) -> str:
    """Digest of the bundle of a version that runs on a device; empty if none is known."""
    reported = reported_of(device)
    for report in reported.models if reported is not None else ():
        if report.model == model and report.active_version == version and report.active_sha256:
            return report.active_sha256
    assigned = assignments.bundles_of(assignments.current(session, device.id)).get(model)
    if assigned is not None and assigned.custom.version == version:
        return assigned.sha256
    if not device.facts:
        return ""
    found = registry.bundle_for(session, model, version, devices.facts_of(device), channel=device.channel)
    return "" if found is None else found.sha256


def _track(session: Session, window: DriftWindow, score: WindowScore, settings: DriftSettings, now: float) -> None:
    key = (window.device_id, window.model, window.version)
    row = session.get(DriftTrack, key)
    if row is None:
        row = DriftTrack(device_id=window.device_id, model=window.model, version=window.version)
    track, change = advance(Track(row.bad, row.good, row.open), score, settings)
    row.bad, row.good, row.open = track.bad, track.good, track.open
    session.add(row)
    if change == "open":
        _open_alert(session, window, score, track, now)
    elif change in ("close", "worsen"):
        for alert in _open_alerts_of(session, window):
            if change == "close":
                alert.closed_at = now
            else:
                alert.severity = "severe"
            session.add(alert)
    session.flush()


def _open_alert(session: Session, window: DriftWindow, score: WindowScore, track: Track, now: float) -> None:
    worst = max((s for s in score.features if s.drifted), key=lambda s: s.psi)
    alert = Alert(
        id=new_id("alert"),
        kind=DRIFT,
        severity="severe" if score.severe else "warning",
        model=window.model,
        version=window.version,
        device_id=window.device_id,
        opened_at=now,
        features=list(score.drifted_features),
        simulated=window.simulated,
        reason=(
            f"{worst.feature} has drifted from the training baseline: PSI {worst.psi:.2f}, threshold "
            f"{worst.psi_threshold:.2f}, over {worst.samples} samples, {track.bad} windows in a row"
        ),
    )
    session.add(alert)
    log.warning("drift on %s, %s %d: %s", window.device_id, window.model, window.version, alert.reason)
    _ask_retraining(session, alert, now)


def _ask_retraining(session: Session, alert: Alert, now: float) -> None:
    """One request a model and version, as long as it has not been taken."""
    waiting = session.exec(select(Job).where(Job.kind == jobs.RETRAIN, col(Job.state).in_(("queued", "claimed")))).all()
    if any((job.payload["model"], job.payload["version"]) == (alert.model, alert.version) for job in waiting):
        return
    payload = {"model": alert.model, "version": alert.version, "reason": alert.reason, "alert": alert.id}
    jobs.add(session, jobs.RETRAIN, payload, now)


def _open_alerts_of(session: Session, window: DriftWindow) -> Sequence[Alert]:
    return session.exec(
        select(Alert).where(
            Alert.kind == DRIFT,
            Alert.device_id == window.device_id,
            Alert.model == window.model,
            Alert.version == window.version,
            col(Alert.closed_at).is_(None),
        )
    ).all()


def windows(
    session: Session,
    *,
    model: str | None = None,
    version: int | None = None,
    device_ids: Sequence[str] | None = None,
    since: float | None = None,
    limit: int,
) -> list[DriftWindow]:
    """Judged windows, newest first."""
    statement = select(DriftWindow).where(col(DriftWindow.scored)).order_by(col(DriftWindow.id).desc()).limit(limit)
    if model is not None:
        statement = statement.where(DriftWindow.model == model)
    if version is not None:
        statement = statement.where(DriftWindow.version == version)
    if device_ids is not None:
        statement = statement.where(col(DriftWindow.device_id).in_(list(device_ids)))
    if since is not None:
        statement = statement.where(col(DriftWindow.received_at) >= since)
    return list(session.exec(statement))


def merged(
    found: Sequence[DriftWindow], baselines: Baselines, settings: DriftSettings, slice_s: float
) -> list[MergedWindow]:
    """Merge windows of one model and version by slices of time, newest first.

    Only windows over one bundle's baseline merge: within a slice the bundle that most of them ran is taken.
    """
    slices: dict[tuple[float, str], list[DriftWindow]] = defaultdict(list)
    for window in found:
        if window.sha256:
            slices[window.received_at // slice_s * slice_s, window.sha256].append(window)
    merged_windows = []
    for (start, sha256), members in sorted(slices.items(), reverse=True):
        baseline = baselines.of(sha256)
        if baseline is None:
            continue
        sketches = _merge_all([_SKETCHES.decode(window.sketches) for window in members])
        merged_windows.append(
            MergedWindow(
                start=start,
                end=start + slice_s,
                devices=tuple(sorted({window.device_id for window in members})),
                samples=sum(window.samples for window in members),
                score=judge(sketches, baseline, settings),
            )
        )
    return merged_windows


def _merge_all(parts: Sequence[dict[str, FeatureSketch]]) -> dict[str, FeatureSketch]:
    total: dict[str, FeatureSketch] = {}
    for part in parts:
        for name, sketch in part.items():
            try:
                total[name] = merge(total[name], sketch) if name in total else sketch
            except SketchError as error:
                log.warning("a window's sketch of %s is left out: %s", name[:80], error)
    return total


def alerts(session: Session, *, only_open: bool, limit: int) -> list[Alert]:
    """Alerts, newest first."""
    statement = select(Alert).order_by(col(Alert.opened_at).desc(), col(Alert.id)).limit(limit)
    if only_open:
        statement = statement.where(col(Alert.closed_at).is_(None))
    return list(session.exec(statement))


def acknowledge(session: Session, alert_id: str, actor: str, now: float) -> Alert:
    """Somebody has seen the alert; raise `NotFoundError` if there is none."""
    alert = session.get(Alert, alert_id)
    if alert is None:
        raise NotFoundError(f"there is no alert {alert_id[:64]!r}")
    if alert.acked_at is None:
        alert.acked_at, alert.acked_by = now, actor
        session.add(alert)
        session.flush()
    return alert


def messages_of(session: Session, device_id: str, kind: str, limit: int) -> list[StoredMessage]:
    """A device's messages of one kind, newest first."""
    devices.get(session, device_id)
    statement = select(StoredMessage).where(StoredMessage.device_id == device_id, StoredMessage.kind == kind)
    newest = statement.order_by(col(StoredMessage.received_at).desc(), col(StoredMessage.seq).desc())
    return list(session.exec(newest.limit(limit)))
