"""Carries out what the coordinator of a federation decides, one decision in one transaction.

Aggregation reads and computes outside of any transaction; its result is stored only if the round still waits
for it. What it reads is on the disk, so that a process that was killed over it is followed by another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sqlmodel import Session, col, func, select

from edgewise_server.context import Context
from edgewise_server.errors import InvalidError, ServerError
from edgewise_server.federation.aggregation import ClientUpdate, RoundResult, aggregate
from edgewise_server.federation.coordinator import decide
from edgewise_server.federation.facts import (
    OPEN_ROUNDS,
    Aggregate,
    BeginAggregation,
    Decision,
    FailFederation,
    FailRound,
    FederationFacts,
    FederationSettings,
    OpenRound,
    Promote,
    PublishOffer,
    RoundFacts,
)
from edgewise_server.federation.updates import UpdateError
from edgewise_server.models.federation import Federation, Round
from edgewise_server.models.jobs import Job
from edgewise_server.models.registry import ModelVersion
from edgewise_server.services import blobs, federations, jobs, rollouts, rounds
from edgewise_server.uploads.store import UploadStore

log = logging.getLogger(__name__)


def due(session: Session) -> list[str]:
    """Ids of the federations that are not over."""
    statement = select(Federation.id).where(col(Federation.status).in_(("running", "promoting")))
    return list(session.exec(statement.order_by(col(Federation.created_at))).all())


def facts_of(session: Session, federation: Federation, online: Callable[[Any], bool]) -> FederationFacts:
    """What the coordinator asks about, from rows. `online` tells of a device whether it is."""
    known = federations.rounds_of(session, federation.id)
    failed_in_a_row = 0
    for round_ in reversed(known):
        if round_.state != "failed":
            break
        failed_in_a_row += 1
    return FederationFacts(
        status=federation.status,  # type: ignore[arg-type]  # a column of the same closed vocabulary
        settings=FederationSettings(**federation.settings),
        newest=_round_facts(session, federation, known[-1], online) if known else None,
        closed=sum(round_.state == "closed" for round_ in known),
        failed_in_a_row=failed_in_a_row,
    )


def _round_facts(session: Session, federation: Federation, round_: Round, online: Callable[[Any], bool]) -> RoundFacts:
    counts = rounds.counts(session, round_.id)
    job = session.get(Job, round_.job_id) if round_.job_id else None
    asked = set(round_.body.get("devices", ()))
    expected = [d for d in rounds.cohort(session, federation) if online(d) and (not asked or d.id in asked)]
    return RoundFacts(
        number=round_.number,
        state=round_.state,  # type: ignore[arg-type]  # a column of the same closed vocabulary
        started_at=round_.started_at,
        deadline=round_.deadline,
        expected=len(expected),
        stored=counts.get("stored", 0),
        uploading=counts.get("uploading", 0) + counts.get("waiting", 0),
        last_stored_at=rounds.last_stored_at(session, round_.id),
        signing_failed=job.error or "the worker gave no reason" if job is not None and job.state == "failed" else "",
    )


def move(
    session: Session,
    context: Context,
    federation: Federation,
    uploads: UploadStore,
    online: Callable[[Any], bool],
    now: float,
) -> Decision | None:
    """Decide and carry out one step; an `Aggregate` is only returned, for `run_aggregation`."""
    if federation.status == "promoting":
        _follow_promotion(session, federation, now)
        return None
    decision = decide(facts_of(session, federation, online), now)
    try:
        _carry_out(session, context, federation, uploads, decision, now)
    except (ServerError, InvalidError) as error:
        _fail(session, federation, f"{type(decision).__name__} failed: {error}", now)
    return decision


def _carry_out(
    session: Session,
    context: Context,
    federation: Federation,
    uploads: UploadStore,
    decision: Decision | None,
    now: float,
) -> None:
    match decision:
        case None | Aggregate():
            return
        case OpenRound(number):
            rounds.open_round(session, federation, number, now)
        case PublishOffer(number):
            rounds.publish_offer(session, context, federation, _numbered(session, federation, number), now)
        case BeginAggregation(number, reason):
            rounds.begin_aggregation(session, _numbered(session, federation, number), reason)
        case FailRound(number, reason):
            round_ = _numbered(session, federation, number)
            rounds.fail(session, round_, reason, now)
            uploads.remove_round(round_.id)
        case Promote(reason):
            _promote(session, federation, reason, now)
        case FailFederation(reason):
            _fail(session, federation, reason, now)


def run_aggregation(
    context: Context,
    uploads: UploadStore,
    federation_id: str,
    number: int,
    hold: Callable[[Session], None],
    clock: Callable[[], float],
) -> None:
    """Compute a round's result and close the round, or fail it.

    Args:
        hold: prolongs the lease in a transaction; raises when another process has taken over.
    """
    with context.database.session(read_only=True) as session:
        federation = federations.get(session, federation_id)
        round_ = federations.round_numbered(session, federation_id, number)
        settings = FederationSettings(**federation.settings)
        updates = [
            ClientUpdate(row.device_id, uploads.path(round_.id, row.device_id), row.samples)
            for row in federations.clients_of(session, round_.id)
            if row.state == "stored"
        ]
        round_id, start = round_.id, context.blobs.path(str(round_.weights["sha256"]))
    error, result = "", RoundResult(b"", ())
    try:
        result = aggregate(
            settings.strategy,
            start,
            updates,
            min_clients=settings.min_clients,
            clip_norm=settings.clip_norm,
            progress=lambda _device: _stay(context, hold),
        )
    except UpdateError as refused:
        error = f"the global weights cannot be read: {refused}"
    with context.database.session() as session:
        hold(session)
        federation = federations.get(session, federation_id)
        round_ = federations.round_numbered(session, federation_id, number)
        if round_.state != "aggregating":
            return
        if result.weights:
            blob = blobs.add(session, context.blobs, result.weights)
            rounds.close(session, federation, round_, blob, result.clients, clock())
        else:
            good = len(result.accepted)
            reason = error or f"only {good} updates can be averaged; {settings.min_clients} are needed"
            rounds.fail(session, round_, reason, clock(), result.clients)
    uploads.remove_round(round_id)


def _stay(context: Context, hold: Callable[[Session], None]) -> None:
    with context.database.session() as session:
        hold(session)


def _promote(session: Session, federation: Federation, reason: str, now: float) -> None:
    newest = session.exec(select(func.max(ModelVersion.version)).where(ModelVersion.model == federation.model)).one()
    payload = {
        "federation": federation.id,
        "model": federation.model,
        "channel": federation.channel,
        "weights_sha256": federation.weights_sha256,
        "base_version": federation.base_version,
        "next_version": (newest or 0) + 1,
        "group": federation.group,
        "profiles": federation.profiles,
    }
    federation.promote_job = jobs.add(session, jobs.PROMOTE, payload, now).id
    federation.status, federation.reason = "promoting", reason[:2000]
    session.add(federation)
    session.flush()


def _follow_promotion(session: Session, federation: Federation, now: float) -> None:
    job = session.get(Job, federation.promote_job) if federation.promote_job else None
    if job is None or job.state == "failed":
        _fail(session, federation, f"the promotion failed: {job.error if job else 'its job is gone'}", now)
        return
    if job.state != "finished":
        return
    result = job.result or {}
    federation.status, federation.finished_at = "finished", now
    if not result.get("passed"):
        federation.reason = "the gate did not let the result pass"
    else:
        version = result.get("version")
        federation.promoted_version = version if isinstance(version, int) else int(job.payload["next_version"])
        federation.reason = f"promoted as version {federation.promoted_version}"
        if federation.rollout is not None:
            _start_rollout(session, federation, federation.promoted_version, now)
    session.add(federation)
    session.flush()
    log.info("federation %s: %s", federation.id, federation.reason)


def _start_rollout(session: Session, federation: Federation, version: int, now: float) -> None:
    plan = dict(federation.rollout or {})
    group = plan.pop("group", None) or federation.group or "all"
    request = rollouts.RolloutRequest(
        model=federation.model, version=version, group=group, name=f"{federation.name}: version {version}", **plan
    )
    try:
        federation.rollout_id = rollouts.create(session, request, f"federation {federation.id}", now).id
    except ServerError as error:
        federation.reason = f"{federation.reason}; its rollout cannot start: {error}"[:2000]


def _fail(session: Session, federation: Federation, reason: str, now: float) -> None:
    for round_ in federations.rounds_of(session, federation.id):
        if round_.state in OPEN_ROUNDS:
            rounds.fail(session, round_, reason, now)
    federation.status, federation.finished_at, federation.reason = "failed", now, reason[:2000]
    session.add(federation)
    session.flush()
    log.warning("federation %s failed: %s", federation.id, reason)


def _numbered(session: Session, federation: Federation, number: int) -> Round:
    return federations.round_numbered(session, federation.id, number)
