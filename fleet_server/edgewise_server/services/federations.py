"""Federations: made and stopped by operators, their signed offers taken in; decided in the coordinator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.errors import OfferError
from edgewise_protocol.rounds import Offer, OfferBody, verify_offer
from edgewise_protocol.targets import SignedFile
from sqlmodel import Session, col, select

from edgewise_server.context import Context
from edgewise_server.errors import ConflictError, InvalidError, NotFoundError
from edgewise_server.federation.facts import OPEN_ROUNDS, FederationSettings, FederationSettingsError
from edgewise_server.federation.strategies.table import strategy_named
from edgewise_server.federation.updates import read_layout
from edgewise_server.models.base import new_id
from edgewise_server.models.federation import Federation, Round, RoundClient
from edgewise_server.services import blobs, devices, jobs, registry, rounds

PROFILE_ANY: Final = "any"


@dataclass(frozen=True, slots=True)
class FederationRequest:
    """What an operator asks for. `settings` has the fields of `FederationSettings`."""

    name: str
    model: str
    channel: str
    training_path: str
    settings: dict[str, Any]
    group: str | None = None
    base_version: int | None = None
    profiles: tuple[str, ...] = ()
    rollout: dict[str, Any] | None = field(default=None)


def create(session: Session, context: Context, request: FederationRequest, actor: str, now: float) -> Federation:
    """Start a federation; the orchestrator moves it.

    Raises:
        NotFoundError: there is no such group, training bundle or version.
        InvalidError: the settings contradict each other, the bundle trains another model, or there is no profile.
    """
    try:
        settings = FederationSettings(**request.settings)
    except (FederationSettingsError, TypeError) as error:
        raise InvalidError(str(error)) from error
    strategy_named(settings.strategy)
    if request.group is not None:
        devices.in_group(session, request.group)
    training = training_file(session, request.training_path, request.model)
    profiles = _profiles(session, request)
    if not profiles:
        raise InvalidError(
            "the federation names no profile that its result is to be converted for: give base_version, a version that "
            f"has bundles in {request.channel!r}, or profiles"
        )
    initial = _initial_weights(session, context, training)
    federation = Federation(
        id=new_id("fed"),
        name=request.name,
        model=request.model,
        channel=request.channel,
        group=request.group,
        training_path=request.training_path,
        base_version=request.base_version,
        rounds_wanted=settings.rounds,
        settings=dataclasses.asdict(settings),
        rollout=request.rollout,
        profiles=profiles,
        status="running",
        weights_sha256=initial,
        initial_sha256=initial,
        created_at=now,
        created_by=actor,
    )
    session.add(federation)
    session.flush()
    return federation


def training_file(session: Session, path: str, model: str) -> SignedFile:
    """The trusted training bundle of a federation."""
    training = registry.signed_file(session, path)
    if training is None:
        raise NotFoundError(f"no trusted role has signed a training bundle {path[:200]!r}")
    if training.custom.kind != "training" or training.custom.model != model:
        raise InvalidError(
            f"{path} is a {training.custom.kind} bundle of {training.custom.model}, not one to train {model}"
        )
    return training


def _profiles(session: Session, request: FederationRequest) -> list[str]:
    """The profiles that a promotion converts for: as asked, or those of the base version."""
    if request.profiles:
        return list(request.profiles)
    if request.base_version is None:
        return []
    registry.version_of(session, request.model, request.base_version)
    rows = registry.bundles_of(session, request.model, request.base_version, request.channel)
    return sorted({row.profile for row in rows if row.profile != PROFILE_ANY})


def _initial_weights(session: Session, context: Context, training: SignedFile) -> str:
    """Store the weights that travel in the training bundle; returns their digest."""
    with context.blobs.open(training.sha256) as source:
        reader = BundleReader(source)
        if reader.manifest.training is None:
            raise InvalidError(f"{training.path} has no training section")
        data = reader.read(reader.manifest.training.initial_file)
    blob = blobs.add(session, context.blobs, data)
    read_layout(context.blobs.path(blob.sha256))
    return blob.sha256


def get(session: Session, federation_id: str) -> Federation:
    """A federation; raise `NotFoundError` if there is none."""
    federation = session.get(Federation, federation_id)
    if federation is None:
        raise NotFoundError(f"there is no federation {federation_id[:64]!r}")
    return federation


def listed(session: Session, limit: int = 200) -> list[Federation]:
    """Federations, newest first."""
    return list(session.exec(select(Federation).order_by(col(Federation.created_at).desc()).limit(limit)))


def rounds_of(session: Session, federation_id: str) -> list[Round]:
    """A federation's rounds, in order."""
    statement = select(Round).where(Round.federation_id == federation_id)
    return list(session.exec(statement.order_by(col(Round.number))))


def clients_of(session: Session, round_id: str) -> list[RoundClient]:
    """A round's clients, by device."""
    statement = select(RoundClient).where(RoundClient.round_id == round_id)
    return list(session.exec(statement.order_by(col(RoundClient.device_id))))


def round_numbered(session: Session, federation_id: str, number: int) -> Round:
    """One round; raise `NotFoundError` if there is none of that number."""
    found = session.exec(select(Round).where(Round.federation_id == federation_id, Round.number == number)).first()
    if found is None:
        raise NotFoundError(f"the federation has no round {number}")
    return found


def stop(session: Session, federation_id: str, actor: str, now: float) -> Federation:
    """End a federation where it stands; an open round is given up."""
    federation = get(session, federation_id)
    if federation.status not in ("running", "promoting"):
        raise ConflictError(f"the federation is {federation.status}; it cannot be stopped")
    for round_ in rounds_of(session, federation_id):
        if round_.state in OPEN_ROUNDS:
            rounds.fail(session, round_, f"{actor} stopped the federation", now)
    jobs.cancel(session, federation.promote_job, f"{actor} stopped the federation", now)
    federation.status, federation.finished_at, federation.reason = "stopped", now, f"{actor} stopped it"
    session.add(federation)
    session.flush()
    return federation


def take_offer(session: Session, context: Context, federation_id: str, number: int, data: bytes, now: float) -> Round:
    """Take in the offer that the worker has signed. Repeating it changes nothing.

    Raises:
        OfferError, MalformedError: it does not verify, or is not what the server asked to be signed.
        ConflictError: the round waits for no offer.
    """
    round_ = round_numbered(session, federation_id, number)
    if round_.offer is not None and round_.offer == data:
        return round_
    if round_.state != "draft":
        raise ConflictError(f"round {number} is {round_.state}; it waits for no offer")
    body = msgspec.convert(round_.body, OfferBody)
    offer = verify_offer(
        data,
        context.repository.current(session).targets.signed,
        device_id=body.devices[0] if body.devices else "server",
        channel=body.channel,
        now=datetime.fromtimestamp(now, UTC),
    )
    _check_as_asked(offer, round_, body)
    round_.offer, round_.state = data, "offered"
    session.add(round_)
    session.flush()
    return round_


def _check_as_asked(offer: Offer, round_: Round, body: OfferBody) -> None:
    asked = (body, msgspec.convert(round_.training, SignedFile), msgspec.convert(round_.weights, SignedFile))
    if (offer.body, offer.training, offer.weights) != asked:
        raise OfferError("the signed offer is not the one that the server asked for")


def weights_digest(session: Session, federation_id: str, number: int | None) -> str:
    """Digest of a round's result; the newest if no number is given, the initial weights for 0."""
    federation = get(session, federation_id)
    if number is None:
        found = federation.weights_sha256
    elif number == 0:
        found = federation.initial_sha256
    else:
        found = round_numbered(session, federation_id, number).result_sha256
    if not found:
        raise NotFoundError("that round has no result")
    return found
