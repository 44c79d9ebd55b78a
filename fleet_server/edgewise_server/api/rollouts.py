"""Routes: rollouts."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query
from sqlmodel import Session

from edgewise_server.api.auth import Operator, Viewer
from edgewise_server.api.deps import ContextDep
from edgewise_server.api.rollout_schemas import (
    BarredOut,
    DecisionOut,
    ReasonIn,
    RolloutCounts,
    RolloutDetail,
    RolloutDeviceOut,
    RolloutIn,
    Rollouts,
    RolloutSummary,
)
from edgewise_server.api.times import at
from edgewise_server.context import Context
from edgewise_server.db import SessionDep
from edgewise_server.models.devices import Device
from edgewise_server.models.rollouts import Rollout, RolloutDevice
from edgewise_server.rollout.policy import cohort
from edgewise_server.services import audit, rollout_facts, rollouts

router = APIRouter(tags=["rollouts"])
_MAX_BARRED = 200


@router.post("/rollouts", status_code=201, summary="Roll a version out to a group, in phases")
def create_rollout(body: RolloutIn, session: SessionDep, context: ContextDep, who: Operator) -> RolloutDetail:
    fields = body.model_dump(exclude_none=False)
    made = rollouts.create(session, rollouts.RolloutRequest(**fields), who.name, time.time())
    detail = {"model": body.model, "version": body.version, "group": body.group}
    audit.record(session, who.name, "rollout.create", made.id, detail)
    return _detail(session, context, made)


@router.get("/rollouts", summary="Rollouts, newest first")
def list_rollouts(
    session: SessionDep,
    _: Viewer,
    model: str | None = None,
    status: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Rollouts:
    found = rollouts.listed(session, model=model, status=status, limit=limit)
    return Rollouts(rollouts=[_summary(rollout) for rollout in found])


@router.get("/rollouts/{rollout_id}", summary="A rollout: phase, counts, devices, and decisions with reasons")
def get_rollout(rollout_id: str, session: SessionDep, context: ContextDep, _: Viewer) -> RolloutDetail:
    return _detail(session, context, rollouts.get(session, rollout_id))


@router.post("/rollouts/{rollout_id}/pause", summary="Expose no further device")
def pause_rollout(
    rollout_id: str, session: SessionDep, context: ContextDep, who: Operator, body: ReasonIn | None = None
) -> RolloutDetail:
    reason = body.reason if body else ""
    changed = rollouts.pause(session, rollout_id, reason, who.name, time.time())
    audit.record(session, who.name, "rollout.pause", rollout_id, {"reason": reason})
    return _detail(session, context, changed)


@router.post("/rollouts/{rollout_id}/resume", summary="Go on; what is known so far no longer counts in the gates")
def resume_rollout(
    rollout_id: str, session: SessionDep, context: ContextDep, who: Operator, body: ReasonIn | None = None
) -> RolloutDetail:
    reason = body.reason if body else ""
    changed = rollouts.resume(session, rollout_id, reason, who.name, time.time())
    audit.record(session, who.name, "rollout.resume", rollout_id, {"reason": reason})
    return _detail(session, context, changed)


@router.post("/rollouts/{rollout_id}/abort", summary="Stop, and revert every exposed device to its last good version")
def abort_rollout(
    rollout_id: str, session: SessionDep, context: ContextDep, who: Operator, body: ReasonIn | None = None
) -> RolloutDetail:
    reason = body.reason if body else ""
    changed = rollouts.abort(session, rollout_id, reason, who.name, time.time())
    audit.record(session, who.name, "rollout.abort", rollout_id, {"reason": reason})
    return _detail(session, context, changed)


def _summary(rollout: Rollout) -> RolloutSummary:
    plan = rollout.plan
    return RolloutSummary(
        id=rollout.id,
        name=rollout.name,
        model=rollout.model,
        version=rollout.version,
        group=rollout.group,
        status=rollout.status,
        phase=rollout.phase,
        phases=plan["phases"],
        gates=plan["gates"],
        confirm_within_s=plan["confirm_within_s"],
        offline_after_s=rollout.offline_after_s,
        max_concurrent=plan["max_concurrent"],
        rate_per_minute=plan["rate_per_minute"],
        created_at=at(rollout.created_at),
        phase_started_at=at(rollout.phase_started_at),
        finished_at=at(rollout.finished_at),
        created_by=rollout.created_by,
        reason=rollout.reason,
    )


def _detail(session: Session, context: Context, rollout: Rollout) -> RolloutDetail:
    facts = rollout_facts.gather(session, rollout, time.time(), context.settings.minimum_agent_version)
    barred = [fact for fact in facts if fact.online and fact.barred and fact.exposure is None]
    counts = rollouts.counts(session, rollout.id)
    return RolloutDetail(
        **_summary(rollout).model_dump(),
        counts=RolloutCounts(
            cohort=len(cohort(facts)),
            offline=sum(not fact.online for fact in facts),
            unfit=sum(fact.online and not fact.available for fact in facts),
            barred=len(barred),
            **counts,
        ),
        devices=[_device(row, _reported(session, rollout, row)) for row in rollouts.exposed(session, rollout.id)],
        barred=[BarredOut(device_id=fact.device_id, reason=fact.barred) for fact in barred[:_MAX_BARRED]],
        history=[
            DecisionOut(at=at(row.at), kind=row.kind, device_id=row.device_id, actor=row.actor, reason=row.reason)
            for row in rollouts.history(session, rollout.id)
        ],
    )


def _reported(session: Session, rollout: Rollout, row: RolloutDevice) -> str:
    """The state of the rollout's version that a pending device reports; empty where it has not got there."""
    device = session.get(Device, row.device_id) if row.outcome == "pending" else None
    reported = None if device is None else rollout_facts.reported_of(device)
    if reported is None or reported.assignment_version < row.assignment_version:
        return ""
    return next((report.state for report in reported.models if report.model == rollout.model), "")


def _device(row: RolloutDevice, reported: str) -> RolloutDeviceOut:
    previous = row.previous["custom"].get("version", 1) if row.previous else None
    return RolloutDeviceOut(
        device_id=row.device_id,
        state="reverted" if row.reverted_at is not None else row.outcome,
        reported=reported,
        outcome=row.outcome,
        sha256=row.sha256,
        previous_version=previous,
        assignment_version=row.assignment_version,
        exposed_at=at(row.exposed_at),
        ended_at=at(row.ended_at),
        reverted_at=at(row.reverted_at),
        error_code=row.error_code,
        error=row.error,
    )
