"""Rollouts: made, paused, resumed and aborted by operators; told here in rows, decided in the policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, func, select

from edgewise_server.errors import ConflictError, InvalidError, NotFoundError
from edgewise_server.models.base import new_id
from edgewise_server.models.rollouts import Rollout, RolloutDevice, RolloutHistory
from edgewise_server.rollout.plan import Gates, Phase, Plan, PlanError
from edgewise_server.services import devices, registry

LIVE = ("running", "paused", "completed")
"""Statuses in which a rollout holds its devices; an aborted one lets an older one have them."""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """What an operator, or a passed federation, asks for. Keys of `phases` and `gates` as in the plan."""

    model: str
    version: int
    group: str
    phases: Sequence[dict[str, Any]]
    gates: dict[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""
    confirm_within_s: int = 600
    offline_after_s: float = 30.0
    max_concurrent: int = 100
    rate_per_minute: int | None = None


def create(session: Session, request: RolloutRequest, actor: str, now: float) -> Rollout:
    """Start a rollout; the orchestrator moves it.

    Raises:
        NotFoundError: there is no such group or version.
        InvalidError: the plan contradicts itself, or no trusted bundle of the version exists.
    """
    devices.in_group(session, request.group)
    registry.version_of(session, request.model, request.version)
    if not any(row.trusted for row in registry.bundles_of(session, request.model, request.version)):
        raise InvalidError(f"no trusted bundle of {request.model} {request.version} exists: publish it first")
    rollout = Rollout(
        id=new_id("rollout"),
        name=request.name or f"{request.model} {request.version} to {request.group}",
        model=request.model,
        version=request.version,
        group=request.group,
        plan={
            "phases": [dict(phase) for phase in request.phases],
            "gates": dict(request.gates),
            "confirm_within_s": request.confirm_within_s,
            "max_concurrent": request.max_concurrent,
            "rate_per_minute": request.rate_per_minute,
        },
        offline_after_s=request.offline_after_s,
        status="running",
        phase_started_at=now,
        created_at=now,
        created_by=actor,
    )
    plan_of(rollout)
    session.add(rollout)
    session.flush()
    note(session, rollout, "create", "", now, actor=actor)
    note(session, rollout, "start-phase", f"phase 1 of {len(request.phases)}", now)
    return rollout


def plan_of(rollout: Rollout) -> Plan:
    """The plan of a rollout; raise `InvalidError` if it contradicts itself."""
    plan = rollout.plan
    try:
        return Plan(
            rollout_id=rollout.id,
            phases=tuple(Phase(**phase) for phase in plan["phases"]),
            gates=Gates(**plan["gates"]),
            confirm_within_s=plan["confirm_within_s"],
            max_concurrent=plan["max_concurrent"],
            rate_per_minute=plan["rate_per_minute"],
        )
    except (PlanError, TypeError) as error:
        raise InvalidError(f"the rollout's plan is not valid: {error}") from error


def get(session: Session, rollout_id: str) -> Rollout:
    """A rollout; raise `NotFoundError` if there is none."""
    rollout = session.exec(select(Rollout).where(Rollout.id == rollout_id)).first()
    if rollout is None:
        raise NotFoundError(f"there is no rollout {rollout_id[:64]!r}")
    return rollout


def listed(session: Session, *, model: str | None, status: str | None, limit: int) -> list[Rollout]:
    """Rollouts, newest first."""
    statement = select(Rollout).order_by(col(Rollout.number).desc()).limit(limit)
    if model is not None:
        statement = statement.where(Rollout.model == model)
    if status is not None:
        statement = statement.where(Rollout.status == status)
    return list(session.exec(statement))


def pause(session: Session, rollout_id: str, reason: str, actor: str, now: float) -> Rollout:
    """Expose no further device until it is resumed."""
    rollout = _in(session, rollout_id, ("running",), "paused")
    return _to(session, rollout, "paused", "pause", reason or "the operator paused it", actor, now)


def resume(session: Session, rollout_id: str, reason: str, actor: str, now: float) -> Rollout:
    """Go on. What is known of the exposed devices so far no longer counts in the gates."""
    rollout = _in(session, rollout_id, ("paused",), "resumed")
    rollout.gates_from = now
    return _to(session, rollout, "running", "resume", reason or "the operator resumed it", actor, now)


def abort(session: Session, rollout_id: str, reason: str, actor: str, now: float) -> Rollout:
    """Stop for good, and have every exposed device go back to what it was assigned before."""
    rollout = _in(session, rollout_id, LIVE, "aborted")
    rollout.finished_at = now
    return _to(session, rollout, "aborted", "abort", reason or "the operator aborted it", actor, now)


def note(
    session: Session,
    rollout: Rollout,
    kind: str,
    reason: str,
    now: float,
    *,
    device_id: str | None = None,
    actor: str = "orchestrator",
) -> None:
    """Add to the history."""
    session.add(
        RolloutHistory(rollout_id=rollout.id, at=now, kind=kind, device_id=device_id, actor=actor, reason=reason[:2000])
    )


def exposed(session: Session, rollout_id: str) -> list[RolloutDevice]:
    """The devices that a rollout exposed, by time."""
    statement = select(RolloutDevice).where(RolloutDevice.rollout_id == rollout_id)
    return list(session.exec(statement.order_by(col(RolloutDevice.exposed_at), col(RolloutDevice.device_id))))


def history(session: Session, rollout_id: str, limit: int = 5_000) -> list[RolloutHistory]:
    """What was decided, oldest first."""
    statement = select(RolloutHistory).where(RolloutHistory.rollout_id == rollout_id)
    newest = session.exec(statement.order_by(col(RolloutHistory.id).desc()).limit(limit)).all()
    return list(reversed(newest))


def held_by_newer(session: Session, rollout: Rollout) -> set[str]:
    """Devices that newer rollouts of the same model have: those that they exposed and did not revert."""
    newer = (
        select(RolloutDevice.device_id)
        .join(Rollout, col(Rollout.id) == col(RolloutDevice.rollout_id))
        .where(
            Rollout.model == rollout.model,
            col(Rollout.number) > (rollout.number or 0),
            col(Rollout.status).in_(LIVE),
            col(RolloutDevice.reverted_at).is_(None),
        )
    )
    return set(session.exec(newer).all())


def counts(session: Session, rollout_id: str) -> dict[str, int]:
    """Exposed devices by outcome."""
    statement = (
        select(RolloutDevice.outcome, func.count())
        .where(RolloutDevice.rollout_id == rollout_id)
        .group_by(RolloutDevice.outcome)
    )
    found = {outcome: int(number) for outcome, number in session.exec(statement).all()}
    reverted = (
        select(func.count())
        .select_from(RolloutDevice)
        .where(RolloutDevice.rollout_id == rollout_id, col(RolloutDevice.reverted_at).is_not(None))
    )
    return {
        "exposed": sum(found.values()),
        "pending": found.get("pending", 0),
        "committed": found.get("committed", 0),
        "failed": found.get("failed", 0),
        "reverted": int(session.exec(reverted).one()),
    }


def _in(session: Session, rollout_id: str, statuses: tuple[str, ...], what: str) -> Rollout:
    rollout = get(session, rollout_id)
    if rollout.status not in statuses:
        raise ConflictError(f"the rollout is {rollout.status}; it cannot be {what}")
    return rollout


def _to(session: Session, rollout: Rollout, status: str, kind: str, reason: str, actor: str, now: float) -> Rollout:
    rollout.status, rollout.reason = status, reason[:2000]
    session.add(rollout)
    note(session, rollout, kind, reason, now, actor=actor)
    session.flush()
    return rollout
