"""Routes: federations, their rounds' offers and weights."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

from edgewise_protocol.bounds import MAX_OFFER_BYTES
from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from sqlmodel import Session

from edgewise_server.api.auth import Operator, Viewer, ViewerOrWorker, Worker
from edgewise_server.api.deps import ContextDep
from edgewise_server.api.rollout_schemas import PlanIn
from edgewise_server.api.schemas import NAME, Body
from edgewise_server.api.times import at
from edgewise_server.api.trust import RawBody
from edgewise_server.db import SessionDep
from edgewise_server.errors import TooLargeError
from edgewise_server.federation.facts import MAX_CLIENTS, MAX_ROUND_S, MAX_ROUNDS
from edgewise_server.models.federation import Federation, Round, RoundClient
from edgewise_server.services import audit, federations

router = APIRouter(tags=["federations"])


class FederationPlanIn(PlanIn):
    group: str | None = Field(None, pattern=NAME, max_length=64)


class FederationIn(Body):
    name: str = Field(min_length=1, max_length=200)
    model: str = Field(pattern=NAME, max_length=64)
    channel: str = Field(pattern=NAME, max_length=64)
    group: str | None = Field(None, pattern=NAME, max_length=64)
    training_path: str = Field(max_length=300, examples=["rounds/lab/digits/1.ewb"])
    base_version: int | None = Field(None, ge=1, le=2**31 - 1)
    profiles: list[str] = Field([], max_length=64)
    rounds: int = Field(ge=1, le=MAX_ROUNDS)
    min_clients: int = Field(2, ge=1, le=MAX_CLIENTS)
    epochs: int = Field(1, ge=1, le=1_000)
    batch_size: int = Field(32, ge=1, le=4_096)
    lr: float = Field(gt=0, le=10, description="learning rate; what fits depends on the model, so there is no default")
    mu: float = Field(0.0, ge=0, le=100)
    max_steps: int = Field(2_000, ge=1, le=1_000_000)
    seed: int = Field(0, ge=0, le=2**31 - 1)
    strategy: str = Field("fedavg", max_length=32)
    round_timeout_s: float = Field(300, gt=0, le=MAX_ROUND_S)
    straggler_s: float | None = Field(None, ge=0, le=7 * 24 * 3600)
    clip_norm: float | None = Field(None, gt=0)
    max_uploads: int = Field(4, ge=1, le=64)
    rollout: FederationPlanIn | None = None


class ClientOut(BaseModel):
    device_id: str
    state: str
    samples: int
    length: int
    chunks_through: int
    metrics: dict[str, float]
    error: str
    simulated: bool


class RoundOut(BaseModel):
    number: int
    round_id: str
    state: str
    reason: str
    started_at: datetime
    deadline: datetime | None
    closed_at: datetime | None
    weights_sha256: str
    result_sha256: str | None
    metrics: dict[str, float]
    clients: list[ClientOut]


class FederationSummary(BaseModel):
    id: str
    name: str
    model: str
    channel: str
    group: str | None
    training_path: str
    base_version: int | None
    status: str
    reason: str
    rounds_wanted: int
    round: int
    strategy: str
    settings: dict[str, Any]
    weights_sha256: str | None
    created_at: datetime
    finished_at: datetime | None
    promote_job: str | None
    promoted_version: int | None
    rollout_id: str | None


class FederationDetail(FederationSummary):
    rounds: list[RoundOut]


class Federations(BaseModel):
    federations: list[FederationSummary]


class OfferOut(BaseModel):
    round_id: str
    state: str


_NOT_SETTINGS = {"name", "model", "channel", "group", "training_path", "base_version", "profiles", "rollout"}


@router.post("/federations", status_code=201, summary="Train a model in rounds on the devices of a channel")
def create_federation(body: FederationIn, session: SessionDep, context: ContextDep, who: Operator) -> FederationDetail:
    request = federations.FederationRequest(
        name=body.name,
        model=body.model,
        channel=body.channel,
        group=body.group,
        training_path=body.training_path,
        base_version=body.base_version,
        profiles=tuple(body.profiles),
        rollout=None if body.rollout is None else body.rollout.model_dump(),
        settings=body.model_dump(exclude=_NOT_SETTINGS),
    )
    made = federations.create(session, context, request, who.name, time.time())
    audit.record(session, who.name, "federation.create", made.id, {"model": body.model, "rounds": body.rounds})
    return _detail(session, made)


@router.get("/federations", summary="Federations, newest first")
def list_federations(session: SessionDep, _: Viewer) -> Federations:
    return Federations(federations=[_summary(session, found) for found in federations.listed(session)])


@router.get("/federations/{federation_id}", summary="A federation, its rounds and their clients")
def get_federation(federation_id: str, session: SessionDep, _: Viewer) -> FederationDetail:
    return _detail(session, federations.get(session, federation_id))


@router.post("/federations/{federation_id}/stop", summary="End a federation where it stands")
def stop_federation(federation_id: str, session: SessionDep, who: Operator) -> FederationDetail:
    stopped = federations.stop(session, federation_id, who.name, time.time())
    audit.record(session, who.name, "federation.stop", federation_id)
    return _detail(session, stopped)


@router.put(
    "/federations/{federation_id}/rounds/{number}/offer",
    summary="The worker brings the signed offer of a round",
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}},
)
def put_offer(
    federation_id: str, number: int, data: RawBody, session: SessionDep, context: ContextDep, who: Worker
) -> OfferOut:
    if len(data) > MAX_OFFER_BYTES:
        raise TooLargeError(f"the offer has {len(data)} bytes; at most {MAX_OFFER_BYTES} are allowed")
    round_ = federations.take_offer(session, context, federation_id, number, data, time.time())
    audit.record(session, who.name, "round.offer", round_.id)
    return OfferOut(round_id=round_.id, state=round_.state)


@router.get("/federations/{federation_id}/weights", summary="A round's result as safetensors; 0: the initial weights")
def get_weights(
    federation_id: str,
    session: SessionDep,
    context: ContextDep,
    _: ViewerOrWorker,
    number: Annotated[int | None, Query(alias="round", ge=0, le=MAX_ROUNDS * 2)] = None,
) -> FileResponse:
    sha256 = federations.weights_digest(session, federation_id, number)
    return FileResponse(
        context.blobs.path(sha256), media_type="application/octet-stream", headers={"ETag": f'"{sha256}"'}
    )


def _summary(session: Session, federation: Federation) -> FederationSummary:
    known = federations.rounds_of(session, federation.id)
    return FederationSummary(
        id=federation.id,
        name=federation.name,
        model=federation.model,
        channel=federation.channel,
        group=federation.group,
        training_path=federation.training_path,
        base_version=federation.base_version,
        status=federation.status,
        reason=federation.reason,
        rounds_wanted=federation.rounds_wanted,
        round=known[-1].number if known else 0,
        strategy=federation.settings["strategy"],
        settings=federation.settings,
        weights_sha256=federation.weights_sha256,
        created_at=at(federation.created_at),
        finished_at=at(federation.finished_at),
        promote_job=federation.promote_job,
        promoted_version=federation.promoted_version,
        rollout_id=federation.rollout_id,
    )


def _detail(session: Session, federation: Federation) -> FederationDetail:
    return FederationDetail(
        **_summary(session, federation).model_dump(),
        rounds=[
            _round(round_, federations.clients_of(session, round_.id))
            for round_ in federations.rounds_of(session, federation.id)
        ],
    )


def _round(round_: Round, clients: list[RoundClient]) -> RoundOut:
    return RoundOut(
        number=round_.number,
        round_id=round_.id,
        state=round_.state,
        reason=round_.reason,
        started_at=at(round_.started_at),
        deadline=at(round_.deadline),
        closed_at=at(round_.closed_at),
        weights_sha256=round_.weights["sha256"],
        result_sha256=round_.result_sha256,
        metrics=round_.metrics,
        clients=[
            ClientOut(
                device_id=client.device_id,
                state=client.state,
                samples=client.samples,
                length=client.length,
                chunks_through=client.chunks_through,
                metrics=client.metrics,
                error=client.error,
                simulated=client.simulated,
            )
            for client in clients
        ],
    )
