"""Routes: rollouts."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query
from sqlmodel import Session

from edgewise_server.api.auth import Operator, Viewer
from edgewise_server.api.rollout_schemas import (
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
from edgewise_server.db import SessionDep
from edgewise_server.models.rollouts import Rollout, RolloutDevice
from edgewise_server.rollout.policy import cohort
from edgewise_server.services import audit, rollout_facts, rollouts

router = APIRouter(tags=["rollouts"])


@router.post("/rollouts", status_code=201, summary="Roll a version out to a group, in phases")
def create_rollout(body: RolloutIn, session: SessionDep, who: Operator) -> RolloutDetail:
    fields = body.model_dump(exclude_none=False)
    made = rollouts.create(session, rollouts.RolloutRequest(**fields), who.name, time.time())
    detail = {"model": body.model, "version": body.version, "group": body.group}
    audit.record(session, who.name, "rollout.create", made.id, detail)
    return _detail(session, made)


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
def get_rollout(rollout_id: str, session: SessionDep, _: Viewer) -> RolloutDetail:
    return _detail(session, rollouts.get(session, rollout_id))


@router.post("/rollouts/{rollout_id}/pause", summary="Expose no further device")
def pause_rollout(rollout_id: str, session: SessionDep, who: Operator, body: ReasonIn | None = None) -> RolloutDetail:
    reason = body.reason if body else ""
    changed = rollouts.pause(session, rollout_id, reason, who.name, time.time())
    audit.record(session, who.name, "rollout.pause", rollout_id, {"reason": reason})
    return _detail(session, changed)


@router.post("/rollouts/{rollout_id}/resume", summary="Go on; what is known so far no longer counts in the gates")
def resume_rollout(rollout_id: str, session: SessionDep, who: Operator, body: ReasonIn | None = None) -> RolloutDetail:
    reason = body.reason if body else ""
    changed = rollouts.resume(session, rollout_id, reason, who.name, time.time())
    audit.record(session, who.name, "rollout.resume", rollout_id, {"reason": reason})
    return _detail(session, changed)


@router.post("/rollouts/{rollout_id}/abort", summary="Stop, and revert every exposed device to its last good version")
def abort_rollout(rollout_id: str, session: SessionDep, who: Operator, body: ReasonIn | None = None) -> RolloutDetail:
    reason = body.reason if body else ""
    changed = rollouts.abort(session, rollout_id, reason, who.name, time.time())
    audit.record(session, who.name, "rollout.abort", rollout_id, {"reason": reason})
    return _detail(session, changed)


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


def _detail(session: Session, rollout: Rollout) -> RolloutDetail:
    facts = rollout_facts.gather(session, rollout, time.time())
    counts = rollouts.counts(session, rollout.id)
    return RolloutDetail(
        **_summary(rollout).model_dump(),
        counts=RolloutCounts(
            cohort=len(cohort(facts)),
            offline=sum(not fact.online for fact in facts),
            unfit=sum(fact.online and not fact.available for fact in facts),
            **counts,
        ),
        devices=[_device(row) for row in rollouts.exposed(session, rollout.id)],
        history=[
            DecisionOut(at=at(row.at), kind=row.kind, device_id=row.device_id, actor=row.actor, reason=row.reason)
            for row in rollouts.history(session, rollout.id)
        ],
    )


def _device(row: RolloutDevice) -> RolloutDeviceOut:
    previous = row.previous["custom"].get("version", 1) if row.previous else None
    return RolloutDeviceOut(
        device_id=row.device_id,
        state="reverted" if row.reverted_at is not None else row.outcome,
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
