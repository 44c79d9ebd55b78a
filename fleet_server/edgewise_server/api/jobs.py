"""Routes: jobs for workers."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from edgewise_server.api.auth import ViewerOrWorker, Worker
from edgewise_server.api.schemas import Body
from edgewise_server.api.times import at
from edgewise_server.db import SessionDep
from edgewise_server.models.jobs import Job
from edgewise_server.services import jobs

router = APIRouter(tags=["jobs"])

Kind = Literal["sign-offer", "promote", "retrain"]
WorkerName = Annotated[str, Field(min_length=1, max_length=200)]


class ClaimIn(Body):
    worker: WorkerName
    kinds: list[Kind] = Field(min_length=1, max_length=16)


class WorkerIn(Body):
    worker: WorkerName


class FinishIn(WorkerIn):
    result: dict[str, Any] = Field(default_factory=dict)


class FailIn(WorkerIn):
    error: str = Field(min_length=1, max_length=20_000)


class JobOut(BaseModel):
    id: str
    kind: str
    state: str
    payload: dict[str, Any]
    result: dict[str, Any] | None
    error: str
    worker: str | None
    attempts: int
    created_at: datetime
    claimed_at: datetime | None
    heartbeat_at: datetime | None
    finished_at: datetime | None


class Jobs(BaseModel):
    jobs: list[JobOut]


@router.post(
    "/jobs/claim",
    summary="Take the oldest queued job of some kinds",
    response_model=JobOut,
    responses={204: {"description": "There is none."}},
)
def claim(body: ClaimIn, session: SessionDep, _: Worker) -> JobOut | Response:
    job = jobs.claim(session, body.worker, body.kinds, time.time())
    return Response(status_code=204) if job is None else _job(job)


@router.post("/jobs/{job_id}/heartbeat", summary="The worker is still at it")
def heartbeat(job_id: str, body: WorkerIn, session: SessionDep, _: Worker) -> JobOut:
    return _job(jobs.heartbeat(session, job_id, body.worker, time.time()))


@router.post("/jobs/{job_id}/finish", summary="The job is done")
def finish(job_id: str, body: FinishIn, session: SessionDep, _: Worker) -> JobOut:
    return _job(jobs.finish(session, job_id, body.worker, body.result, time.time()))


@router.post("/jobs/{job_id}/fail", summary="The job cannot be done")
def fail(job_id: str, body: FailIn, session: SessionDep, _: Worker) -> JobOut:
    return _job(jobs.fail(session, job_id, body.worker, body.error, time.time()))


@router.get("/jobs", summary="Jobs, newest first")
def list_jobs(
    session: SessionDep,
    _: ViewerOrWorker,
    state: str | None = None,
    kind: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Jobs:
    return Jobs(jobs=[_job(job) for job in jobs.listed(session, state=state, kind=kind, limit=limit)])


@router.get("/jobs/{job_id}", summary="One job")
def get_job(job_id: str, session: SessionDep, _: ViewerOrWorker) -> JobOut:
    return _job(jobs.get(session, job_id))


def _job(job: Job) -> JobOut:
    return JobOut(
        id=job.id,
        kind=job.kind,
        state=job.state,
        payload=job.payload,
        result=job.result,
        error=job.error,
        worker=job.worker,
        attempts=job.attempts,
        created_at=at(job.created_at),
        claimed_at=at(job.claimed_at),
        heartbeat_at=at(job.heartbeat_at),
        finished_at=at(job.finished_at),
    )
