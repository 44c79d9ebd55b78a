"""One round's steps: drafted, offered, collecting, closed or failed. Called in the caller's transaction."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from edgewise_protocol import topics
from edgewise_protocol.rounds import OfferBody
from edgewise_protocol.targets import SignedFile, TargetCustom, weights_path
from sqlmodel import Session, col, func, select

from edgewise_server.context import Context
from edgewise_server.errors import NotFoundError
from edgewise_server.federation.aggregation import ClientResult
from edgewise_server.federation.facts import FederationSettings
from edgewise_server.models.blobs import Blob
from edgewise_server.models.devices import Device
from edgewise_server.models.federation import Federation, Round, RoundClient
from edgewise_server.services import devices, jobs, outgoing, registry

MAX_ASKED = 1_000
"""Devices that an offer can name; a larger group is asked as the whole channel."""

log = logging.getLogger(__name__)


def cohort(session: Session, federation: Federation) -> list[Device]:
    """The devices that a federation asks: of its channel, and of its group if it has one."""
    members = devices.in_group(session, federation.group or devices.ALL)
    return [device for device in members if device.channel == federation.channel]


def open_round(session: Session, federation: Federation, number: int, now: float) -> Round:
    """Draft a round and ask the worker to sign its offer.

    Raises:
        NotFoundError: the training bundle is no longer trusted, or the weights are gone.
    """
    settings = FederationSettings(**federation.settings)
    training = registry.signed_file(session, federation.training_path)
    weights = session.get(Blob, federation.weights_sha256) if federation.weights_sha256 else None
    if training is None or weights is None:
        raise NotFoundError("the training bundle is no longer trusted, or the weights are gone")
    round_id = f"{federation.id}-r{number}"
    asked = [device.id for device in cohort(session, federation)] if federation.group else []
    body = OfferBody(
        round_id=round_id,
        federation=federation.id,
        number=number,
        channel=federation.channel,
        model=federation.model,
        devices=tuple(asked) if len(asked) <= MAX_ASKED else (),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        mu=settings.mu,
        max_steps=settings.max_steps,
        seed=settings.seed + number,
    )
    file = SignedFile(
        path=weights_path(federation.channel, federation.model, round_id),
        length=weights.size,
        sha256=weights.sha256,
        custom=TargetCustom(chunk_index=weights.chunk_index, kind="weights", model=federation.model, version=number),
    )
    payload = {
        "federation": federation.id,
        "number": number,
        "round_id": round_id,
        "body": msgspec.to_builtins(body),
        "training": msgspec.to_builtins(training),
        "weights": msgspec.to_builtins(file),
        "expires_at": now + settings.sign_timeout_s + settings.round_timeout_s,
    }
    round_ = Round(
        id=round_id,
        federation_id=federation.id,
        number=number,
        state="draft",
        job_id=jobs.add(session, jobs.SIGN_OFFER, payload, now).id,
        body=payload["body"],
        training=payload["training"],
        weights=payload["weights"],
        started_at=now,
    )
    session.add(round_)
    session.flush()
    log.info("federation %s: round %d drafted", federation.id, number)
    return round_


def publish_offer(session: Session, context: Context, federation: Federation, round_: Round, now: float) -> None:
    """Retain what the offer names, then the offer; updates are taken from now on."""
    if round_.offer is None:
        raise NotFoundError(f"round {round_.number} has no signed offer")
    for entry in (round_.training, round_.weights):
        file = msgspec.convert(entry, SignedFile)
        outgoing.retain_blob(session, file.sha256, budget_bytes=context.settings.retained_budget_bytes)
    outgoing.retain(session, topics.round_offer(round_.id), round_.offer)
    round_.state = "collecting"
    round_.deadline = now + FederationSettings(**federation.settings).round_timeout_s
    session.add(round_)
    session.flush()
    log.info("federation %s: round %d offered", federation.id, round_.number)


def begin_aggregation(session: Session, round_: Round, reason: str) -> None:
    """Take no more updates."""
    round_.state, round_.reason = "aggregating", reason[:2000]
    session.add(round_)
    outgoing.clear(session, topics.round_offer(round_.id))
    session.flush()
    log.info("round %s: %s", round_.id, reason)


def close(
    session: Session, federation: Federation, round_: Round, result: Blob, clients: tuple[ClientResult, ...], now: float
) -> None:
    """The round has a result: the federation's new global weights."""
    norms = _record_clients(session, round_, clients, now)
    round_.state, round_.closed_at, round_.result_sha256 = "closed", now, result.sha256
    round_.metrics = metrics_of(session, round_) | {
        "update_norm_mean": sum(norms) / len(norms) if norms else 0.0,
        "clipped": sum(client.clipped for client in clients),
        "refused": sum(bool(client.error) for client in clients),
        "seconds": now - round_.started_at,
    }
    federation.weights_sha256 = result.sha256
    session.add(round_)
    session.add(federation)
    session.flush()
    log.info("federation %s: round %d closed: %s", federation.id, round_.number, round_.metrics)


def fail(session: Session, round_: Round, reason: str, now: float, clients: tuple[ClientResult, ...] = ()) -> None:
    """The round has no result."""
    _record_clients(session, round_, clients, now)
    jobs.cancel(session, round_.job_id, reason, now)
    outgoing.clear(session, topics.round_offer(round_.id))
    round_.state, round_.closed_at, round_.reason = "failed", now, reason[:2000]
    session.add(round_)
    session.flush()
    log.warning("round %s failed: %s", round_.id, reason)


def _record_clients(session: Session, round_: Round, clients: tuple[ClientResult, ...], now: float) -> list[float]:
    norms = []
    for client in clients:
        row = session.get(RoundClient, (round_.id, client.device_id))
        if row is None:
            continue
        row.state, row.error, row.changed_at = (
            ("refused", client.error[:2000], now) if client.error else ("aggregated", "", now)
        )
        if not client.error:
            row.metrics = {**row.metrics, "update_norm": client.norm, "clipped": float(client.clipped)}
            norms.append(client.norm)
        session.add(row)
    session.flush()
    return norms


def metrics_of(session: Session, round_: Round) -> dict[str, Any]:
    """Means of what the aggregated clients measured, weighted by their samples."""
    rows = session.exec(
        select(RoundClient).where(RoundClient.round_id == round_.id, RoundClient.state == "aggregated")
    ).all()
    found: dict[str, Any] = {"clients": len(rows), "samples": sum(row.samples for row in rows)}
    for name in ("loss_before", "loss_after", "accuracy_before", "accuracy_after"):
        having = [row for row in rows if name in row.metrics]
        weight = sum(row.samples for row in having)
        if weight:
            found[name] = sum(row.metrics[name] * row.samples for row in having) / weight
    return found


def counts(session: Session, round_id: str) -> dict[str, int]:
    """Clients of a round by state."""
    statement = (
        select(RoundClient.state, func.count()).where(RoundClient.round_id == round_id).group_by(col(RoundClient.state))
    )
    return {state: int(number) for state, number in session.exec(statement).all()}


def last_stored_at(session: Session, round_id: str) -> float | None:
    """When the newest update was complete."""
    statement = select(func.max(RoundClient.changed_at)).where(
        RoundClient.round_id == round_id, RoundClient.state == "stored"
    )
    found = session.exec(statement).one()
    return None if found is None else float(found)
