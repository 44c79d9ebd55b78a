"""Routes: health, status, tokens, audit log."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from sqlalchemy import text

from edgewise_server.api.auth import Admin, Operator, ViewerOrWorker
from edgewise_server.api.deps import ContextDep
from edgewise_server.api.schemas import (
    AuditOut,
    BrokerInfo,
    Health,
    Items,
    NewToken,
    RoleState,
    Status,
    TokenIn,
    TokenOut,
    TrustState,
)
from edgewise_server.db import SessionDep
from edgewise_server.models.base import utc_now
from edgewise_server.services import audit, metadata, overview, tokens

router = APIRouter(tags=["access"])
VERSION: Final = version("edgewise-server")


@router.get("/health", summary="Whether the server answers and reaches its database")
def health(session: SessionDep) -> Health:
    session.connection().execute(text("SELECT 1"))
    return Health(status="ok", version=VERSION)


@router.get("/status", summary="Versions of the trust, counts, the broker's address")
def status(request: Request, session: SessionDep, context: ContextDep, _: ViewerOrWorker) -> Status:
    settings = context.settings
    states, now = metadata.states(session), utc_now()
    roles = role_states(states)
    return Status(
        version=VERSION,
        roles=sorted(request.app.state.roles),
        trust=TrustState(installed=bool(roles), roles=roles),
        counts=overview.counts(session, now),
        broker=BrokerInfo(host=settings.broker_host, port=settings.broker_port, tls=settings.broker_tls),
        warnings=overview.warnings(states, now),
    )


@router.post("/tokens", status_code=201, summary="Make a bearer token; it is shown once")
def create_token(body: TokenIn, session: SessionDep, who: Admin) -> NewToken:
    token, secret = tokens.create(session, body.name, body.role, body.expires_in_s)
    audit.record(session, who.name, "token.create", token.id, {"name": token.name, "role": token.role})
    return NewToken(**token.model_dump(exclude={"sha256"}), token=secret)


@router.get("/tokens", summary="All tokens, without their secrets")
def list_tokens(session: SessionDep, _: Admin) -> Items[TokenOut]:
    return Items(items=[TokenOut(**token.model_dump(exclude={"sha256"})) for token in tokens.all_tokens(session)])


@router.delete("/tokens/{token_id}", status_code=204, summary="Revoke a token at once")
def delete_token(token_id: str, session: SessionDep, who: Admin) -> None:
    token = tokens.delete(session, token_id)
    audit.record(session, who.name, "token.delete", token.id, {"name": token.name, "role": token.role})


@router.get("/audit", summary="What was changed, by whom; newest first")
def list_audit(session: SessionDep, _: Operator, limit: Annotated[int, Query(ge=1, le=1_000)] = 100) -> Items[AuditOut]:
    return Items(items=[AuditOut(**entry.model_dump()) for entry in audit.newest(session, limit)])


def role_states(states: dict[str, tuple[int, datetime]]) -> dict[str, RoleState]:
    """Versions and expiries of the metadata by role."""
    return {role: RoleState(version=number, expires=expires) for role, (number, expires) in states.items()}
