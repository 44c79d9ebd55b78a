"""Jobs for workers: claimed, kept alive by heartbeats, finished or failed.

A job may be claimed again when its worker falls silent, so a worker's effects are idempotent; only the worker
that holds it may finish it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from sqlmodel import Session, col, select

from edgewise_server.db import hold_lock
from edgewise_server.errors import ConflictError, NotFoundError
from edgewise_server.models.base import new_id
from edgewise_server.models.jobs import Job

SIGN_OFFER: Final = "sign-offer"
PROMOTE: Final = "promote"
RETRAIN: Final = "retrain"
KINDS: Final = (SIGN_OFFER, PROMOTE, RETRAIN)

SILENT_S: Final = 60.0
"""A claimed job without a heartbeat for this long goes back to the queue."""
MAX_ATTEMPTS: Final = 3

log = logging.getLogger(__name__)


def add(session: Session, kind: str, payload: dict[str, Any], now: float) -> Job:
    """Queue a job."""
    job = Job(id=new_id("job"), kind=kind, state="queued", payload=payload, created_at=now)
    session.add(job)
    session.flush()
    return job


def get(session: Session, job_id: str) -> Job:
    """A job; raise `NotFoundError` if there is none."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFoundError(f"there is no job {job_id[:64]!r}")
    return job


def listed(session: Session, *, state: str | None, kind: str | None, limit: int) -> list[Job]:
    """Jobs, newest first."""
    statement = select(Job).order_by(col(Job.created_at).desc(), col(Job.id)).limit(limit)
    if state is not None:
        statement = statement.where(Job.state == state)
    if kind is not None:
        statement = statement.where(Job.kind == kind)
    return list(session.exec(statement))


def claim(session: Session, worker: str, kinds: Sequence[str], now: float) -> Job | None:
    """The oldest queued job of one of these kinds, now the worker's; None when there is none."""
    hold_lock(session, "jobs")
    job = session.exec(
        select(Job)
        .where(Job.state == "queued", col(Job.kind).in_(list(kinds)))
        .order_by(col(Job.created_at), col(Job.id))
        .limit(1)
    ).first()
    if job is None:
        return None
    job.state, job.worker = "claimed", worker
    job.attempts += 1
    job.claimed_at = job.heartbeat_at = now
    session.flush()
    return job


def heartbeat(session: Session, job_id: str, worker: str, now: float) -> Job:
    """The worker is still at it; raise `ConflictError` when the job is no longer its own."""
    job = _held(session, job_id, worker)
    job.heartbeat_at = now
    session.flush()
    return job


def finish(session: Session, job_id: str, worker: str, result: dict[str, Any], now: float) -> Job:
    """The job is done. Repeating it changes nothing."""
    job = get(session, job_id)
    if job.state == "finished" and job.worker == worker:
        return job
    job = _held(session, job_id, worker)
    job.state, job.result, job.finished_at = "finished", result, now
    session.flush()
    return job


def fail(session: Session, job_id: str, worker: str, error: str, now: float) -> Job:
    """The job cannot be done. Repeating it changes nothing."""
    job = get(session, job_id)
    if job.state == "failed" and job.worker == worker:
        return job
    job = _held(session, job_id, worker)
    job.state, job.error, job.finished_at = "failed", error[:2000], now
    session.flush()
    return job


def cancel(session: Session, job_id: str | None, reason: str, now: float) -> None:
    """Nobody needs the job any more, if it is not over."""
    job = session.get(Job, job_id) if job_id else None
    if job is not None and job.state in ("queued", "claimed"):
        job.state, job.error, job.finished_at = "failed", reason[:2000], now
        session.flush()


def requeue_silent(session: Session, now: float) -> int:
    """Give back jobs whose worker has fallen silent; one that was tried too often fails. Returns how many."""
    silent = session.exec(
        select(Job).where(Job.state == "claimed", col(Job.heartbeat_at) < now - SILENT_S).limit(100)
    ).all()
    for job in silent:
        if job.attempts >= MAX_ATTEMPTS:
            job.state, job.finished_at = "failed", now
            job.error = f"{job.attempts} workers fell silent over it, the last one was {job.worker}"
        else:
            job.state, job.worker = "queued", None
        log.warning("job %s (%s) is %s: its worker fell silent", job.id, job.kind, job.state)
    session.flush()
    return len(silent)


def _held(session: Session, job_id: str, worker: str) -> Job:
    job = get(session, job_id)
    if job.state != "claimed" or job.worker != worker:
        raise ConflictError(f"the job {job.id} is not {worker}'s: it is {job.state}")
    return job
