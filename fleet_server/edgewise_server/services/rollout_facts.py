"""Gathers what the rollout policy asks about, from rows."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from edgewise_protocol.deployment import ENDED_BADLY
from edgewise_protocol.messages import ModelReport, Reported
from edgewise_protocol.targets import SignedFile
from sqlmodel import Session, col, func, select

from edgewise_server.models.devices import Device
from edgewise_server.models.registry import Target
from edgewise_server.models.rollouts import Rollout, RolloutDevice
from edgewise_server.models.telemetry import Alert, ModelWindow
from edgewise_server.rollout.eligibility import barred
from edgewise_server.rollout.facts import DeviceFact, Exposure, Outcome
from edgewise_server.services import devices, registry, rollouts

CONFIRM_GRACE_S = 30.0
"""How much longer than `confirm_within_s` an online device may take before it counts as failed."""


def is_online(device: Device, now: float, offline_after_s: float) -> bool:
    """Whether the device counts: it is connected, or was until a moment ago."""
    return device.revoked_at is None and (
        device.online or (device.last_seen_at is not None and now - device.last_seen_at.timestamp() < offline_after_s)
    )


def bundle_for(session: Session, rollout: Rollout, device: Device) -> SignedFile | None:
    """The bundle of the rollout's version that fits the device; None if none does."""
    if not device.facts:
        return None
    return registry.bundle_for(
        session, rollout.model, rollout.version, devices.facts_of(device), channel=device.channel
    )


def last_good(session: Session, model: str, device: Device, assigned: SignedFile | None) -> SignedFile | None:
    """What a revert names: the bundle that serves now, if it is still signed; else what was assigned.

    The two differ where the device has refused or rolled back its newest assignment.
    """
    reported = reported_of(device)
    report = None if reported is None else next((entry for entry in reported.models if entry.model == model), None)
    if report is None or not report.active_sha256 or (assigned and assigned.sha256 == report.active_sha256):
        return assigned
    path = session.exec(
        select(Target.path).where(
            Target.sha256 == report.active_sha256, Target.channel == device.channel, col(Target.trusted)
        )
    ).first()
    return assigned if path is None else registry.signed_file(session, path)


def reported_of(device: Device) -> Reported | None:
    """What the device last reported, or None."""
    return None if device.reported is None else msgspec.convert(device.reported, Reported)


def gather(session: Session, rollout: Rollout, now: float, minimum_agent: str = "") -> list[DeviceFact]:
    """A fact for every device of the group, and for every exposed one.

    Args:
        minimum_agent: oldest agent that gets new models, empty for any.
    """
    rows = {row.device_id: row for row in rollouts.exposed(session, rollout.id)}
    members = {device.id: device for device in devices.in_group(session, rollout.group)}
    missing = [device_id for device_id in rows if device_id not in members]
    for device in session.exec(select(Device).where(col(Device.id).in_(missing))).all() if missing else ():
        members[device.id] = device
    held = rollouts.held_by_newer(session, rollout)
    health = _health(session, rollout, list(rows.values()))
    alerts = _open_alerts(session, rollout)
    facts = []
    for device_id, device in sorted(members.items()):
        row = rows.get(device_id)
        online = is_online(device, now, rollout.offline_after_s)
        facts.append(
            DeviceFact(
                device_id=device_id,
                online=online,
                available=row is not None or (online and bundle_for(session, rollout, device) is not None),
                held=device_id in held or device.revoked_at is not None,
                barred=barred(rollout.model, str(device.facts.get("agent_version", "")), minimum_agent),
                exposure=None if row is None else _exposure(row, health, alerts),
            )
        )
    return facts


def observe(session: Session, rollout: Rollout, now: float) -> list[RolloutDevice]:
    """Record outcomes that devices have reported since; returns the rows that changed."""
    changed = []
    pending = [row for row in rollouts.exposed(session, rollout.id) if row.outcome == "pending" and not row.reverted_at]
    for row in pending:
        device = session.get(Device, row.device_id)
        if device is None:
            continue
        outcome, code, error = outcome_of(device, rollout, row, now)
        if outcome == "pending":
            continue
        row.outcome, row.ended_at, row.error_code, row.error = outcome, now, code[:64], error[:2000]
        session.add(row)
        rollouts.note(
            session, rollout, "outcome", f"{outcome}: {error}" if error else outcome, now, device_id=device.id
        )
        changed.append(row)
    session.flush()
    return changed


def outcome_of(device: Device, rollout: Rollout, row: RolloutDevice, now: float) -> tuple[Outcome, str, str]:
    """What became of the version on a device: outcome, error code, error."""
    reported = reported_of(device)
    if reported is not None and reported.assignment_version >= row.assignment_version:
        report = next((entry for entry in reported.models if entry.model == rollout.model), None)
        if report is not None:
            found = _of_report(report, row.sha256)
            if found[0] != "pending":
                return found
    late = row.exposed_at + rollout.plan["confirm_within_s"] + CONFIRM_GRACE_S
    if now > late and is_online(device, now, rollout.offline_after_s):
        refusal = "" if reported is None or not reported.error else f"; the device says: {reported.error}"
        return "failed", "not-confirmed", f"the version was not confirmed in time{refusal}"
    return "pending", "", ""


def _of_report(report: ModelReport, sha256: str) -> tuple[Outcome, str, str]:
    if report.active_sha256 == sha256 and report.state in ("committed", "idle"):
        return "committed", "", ""
    if report.target_sha256 == sha256 and report.state in ENDED_BADLY:
        return "failed", report.error_code or report.state.replace("_", "-"), report.error or report.state
    return "pending", "", ""


def _exposure(row: RolloutDevice, health: dict[str, tuple[int, int, float]], alerts: dict[str, int]) -> Exposure:
    requests, errors, p95 = health.get(row.device_id, (0, 0, 0.0))
    outcome: Outcome = "committed" if row.outcome == "committed" else "failed" if row.outcome == "failed" else "pending"
    return Exposure(
        exposed_at=row.exposed_at,
        outcome=outcome,
        ended_at=row.ended_at,
        reverted=row.reverted_at is not None,
        requests=requests,
        errors=errors,
        p95_ms=p95,
        drift_alerts=alerts.get(row.device_id, 0),
    )


def _health(session: Session, rollout: Rollout, rows: Sequence[RolloutDevice]) -> dict[str, tuple[int, int, float]]:
    """(requests, errors, request-weighted mean of the windows' p95) per device since its exposure."""
    if not rows:
        return {}
    weighted = func.sum(ModelWindow.p95_ms * ModelWindow.requests)
    statement = (
        select(ModelWindow.device_id, func.sum(ModelWindow.requests), func.sum(ModelWindow.errors), weighted)
        .join(
            RolloutDevice,
            (col(RolloutDevice.device_id) == col(ModelWindow.device_id))
            & (col(RolloutDevice.rollout_id) == rollout.id),
        )
        .where(
            ModelWindow.model == rollout.model,
            ModelWindow.version == rollout.version,
            col(ModelWindow.received_at) >= col(RolloutDevice.exposed_at),
            col(ModelWindow.received_at) >= rollout.gates_from,
        )
        .group_by(col(ModelWindow.device_id))
    )
    return {
        device_id: (int(requests), int(errors), float(sum_p95) / max(1, int(requests)))
        for device_id, requests, errors, sum_p95 in session.exec(statement).all()
    }


def _open_alerts(session: Session, rollout: Rollout) -> dict[str, int]:
    statement = (
        select(Alert.device_id, func.count())
        .where(Alert.model == rollout.model, Alert.version == rollout.version, col(Alert.closed_at).is_(None))
        .group_by(col(Alert.device_id))
    )
    return {device_id: int(number) for device_id, number in session.exec(statement).all()}
