"""Carries out what the rollout policy decides: each rollout in its own transaction, history first."""

from __future__ import annotations

import logging

import msgspec
from edgewise_protocol.targets import SignedFile
from sqlmodel import Session, and_, col, func, or_, select

from edgewise_server.context import Context
from edgewise_server.errors import DirectorError, QuotaError
from edgewise_server.models.devices import Device
from edgewise_server.models.rollouts import Rollout, RolloutDevice
from edgewise_server.rollout.facts import (
    Abort,
    AssignDevice,
    Complete,
    Decision,
    Pause,
    RevertDevice,
    RolloutState,
    RolloutStatus,
    StartPhase,
)
from edgewise_server.rollout.policy import decide
from edgewise_server.services import assignments, rollout_facts, rollouts

log = logging.getLogger(__name__)
_STATUS: dict[str, RolloutStatus] = {
    "running": "running",
    "paused": "paused",
    "completed": "completed",
    "aborted": "aborted",
}


def move(session: Session, context: Context, rollout: Rollout, now: float) -> int:
    """Observe, decide, and carry out; all in the caller's transaction. Returns the number of decisions."""
    rollout_facts.observe(session, rollout, now)
    plan = rollouts.plan_of(rollout)
    state = RolloutState(_STATUS[rollout.status], rollout.phase, rollout.phase_started_at, rollout.gates_from)
    facts = rollout_facts.gather(session, rollout, now, context.settings.minimum_agent_version)
    decisions = decide(plan, state, facts, now)
    for decision in decisions:
        if not _carry_out(session, context, rollout, decision, now):
            break
    session.add(rollout)
    session.flush()
    return len(decisions)


def due(session: Session, *, with_completed: bool) -> list[str]:
    """Ids of the rollouts that may have something to do, oldest first.

    Of the completed ones, the newest for each model and group takes late joiners in; `with_completed` asks for them.
    """
    unreverted = select(RolloutDevice.rollout_id).where(col(RolloutDevice.reverted_at).is_(None))
    aborted = and_(col(Rollout.status) == "aborted", col(Rollout.id).in_(unreverted))
    found = set(session.exec(select(Rollout.number).where(or_(col(Rollout.status) == "running", aborted))).all())
    if with_completed:
        newest = (
            select(func.max(col(Rollout.number)))
            .where(col(Rollout.status).in_(rollouts.LIVE))
            .group_by(col(Rollout.model), col(Rollout.group))
        )
        completed = select(Rollout.number).where(col(Rollout.number).in_(newest), Rollout.status == "completed")
        found |= set(session.exec(completed).all())
    ordered = select(Rollout.id).where(col(Rollout.number).in_(found)).order_by(col(Rollout.number))
    return list(session.exec(ordered).all())


def _carry_out(session: Session, context: Context, rollout: Rollout, decision: Decision, now: float) -> bool:
    """Carry one decision out; false when the others must wait."""
    match decision:
        case AssignDevice(device_id, reason):
            return _assign(session, context, rollout, device_id, reason, now)
        case RevertDevice(device_id, reason):
            return _revert(session, context, rollout, device_id, reason, now)
        case StartPhase(index, reason):
            rollout.phase, rollout.phase_started_at = index, now
            _log(session, rollout, "start-phase", reason, now)
        case Complete(reason):
            rollout.status, rollout.finished_at, rollout.reason = "completed", now, reason[:2000]
            _log(session, rollout, "complete", reason, now)
        case Pause(reason):
            rollout.status, rollout.reason = "paused", reason[:2000]
            _log(session, rollout, "pause", reason, now)
        case Abort(reason):
            rollout.status, rollout.finished_at, rollout.reason = "aborted", now, reason[:2000]
            _log(session, rollout, "abort", reason, now)
    return True


def _assign(session: Session, context: Context, rollout: Rollout, device_id: str, reason: str, now: float) -> bool:
    device = session.get(Device, device_id)
    bundle = None if device is None else rollout_facts.bundle_for(session, rollout, device)
    if device is None or bundle is None:
        return True
    assigned_before = assignments.bundles_of(assignments.current(session, device_id)).get(rollout.model)
    before = rollout_facts.last_good(session, rollout.model, device, assigned_before)
    try:
        assigned = assignments.change(
            session, context, device, rollout.model, bundle, rollout.id, rollout.plan["confirm_within_s"]
        )
    except (DirectorError, QuotaError) as error:
        rollout.status, rollout.reason = "paused", str(error)[:2000]
        _log(session, rollout, "pause", f"{device_id} cannot be assigned its bundle: {error}", now)
        return False
    session.add(
        RolloutDevice(
            rollout_id=rollout.id,
            device_id=device_id,
            sha256=bundle.sha256,
            previous=None if before is None else msgspec.to_builtins(before),
            assignment_version=assigned.version,
            exposed_at=now,
        )
    )
    _log(session, rollout, "assign", reason, now, device_id)
    return True


def _revert(session: Session, context: Context, rollout: Rollout, device_id: str, reason: str, now: float) -> bool:
    row = session.get(RolloutDevice, (rollout.id, device_id))
    device = session.get(Device, device_id)
    if row is None or device is None or row.reverted_at is not None:
        return True
    previous = None if row.previous is None else msgspec.convert(row.previous, SignedFile)
    try:
        assignments.change(
            session, context, device, rollout.model, previous, rollout.id, rollout.plan["confirm_within_s"]
        )
    except DirectorError as error:
        # what the device had before may no longer be signed, or be below the floor: then nothing is assigned
        log.warning("rollout %s: %s", rollout.id, error)
        reason = f"{reason}; the bundle before it may not be assigned any more: {error}"
        previous = None
        assignments.change(session, context, device, rollout.model, None, rollout.id, rollout.plan["confirm_within_s"])
    row.reverted_at = now
    session.add(row)
    _log(session, rollout, "revert", f"{reason}: back to {_named(previous)}", now, device_id)
    return True


def _named(bundle: SignedFile | None) -> str:
    return "no version" if bundle is None else f"version {bundle.custom.version}"


def _log(session: Session, rollout: Rollout, kind: str, reason: str, now: float, device_id: str | None = None) -> None:
    rollouts.note(session, rollout, kind, reason, now, device_id=device_id)
    log.info("rollout %s: %s %s: %s", rollout.id, kind, device_id or "", reason)
