"""Gives devices their assignments: signs, remembers, and retains what the device needs before it is told."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from edgewise_protocol import topics
from edgewise_protocol.bounds import MAX_ASSIGNMENT_BYTES
from edgewise_protocol.metadata import parse_targets
from edgewise_protocol.targets import SignedFile
from sqlmodel import Session, col, select

from edgewise_server.context import Context
from edgewise_server.models.assignments import Assignment
from edgewise_server.models.devices import Device
from edgewise_server.models.federation import Federation, Round
from edgewise_server.models.rollouts import Rollout, RolloutDevice
from edgewise_server.services import outgoing

NO_DEPLOYMENT = "none"


def current(session: Session, device_id: str) -> Assignment | None:
    """The newest assignment of a device."""
    return session.get(Assignment, device_id)


def bundles_of(assignment: Assignment | None) -> dict[str, SignedFile]:
    """The bundles that an assignment names, by model."""
    if assignment is None:
        return {}
    files = [msgspec.convert(bundle, SignedFile) for bundle in assignment.bundles]
    return {file.custom.model: file for file in files}


def assign(
    session: Session,
    context: Context,
    device: Device,
    bundles: Iterable[SignedFile],
    deployment: str,
    confirm_within_s: int,
) -> Assignment:
    """Sign and retain a new assignment, all in the caller's transaction.

    Args:
        bundles: one a model: all that the device is to run, not only what changes.

    Raises:
        QuotaError: the broker's budget does not hold the bundles.
        ServerError: the director refuses; see `edgewise_server.trust.director`.
    """
    files = tuple(sorted(bundles, key=lambda file: file.path))
    for file in files:
        outgoing.retain_blob(session, file.sha256, budget_bytes=context.settings.retained_budget_bytes)
    payload = context.director.issue_assignment(session, device.id, files, deployment, confirm_within_s)
    signed = parse_targets(payload, MAX_ASSIGNMENT_BYTES, "assignment").signed
    row = session.get(Assignment, device.id)
    values: dict[str, Any] = {
        "version": signed.version,
        "channel": device.channel,
        "deployment": deployment,
        "bundles": [msgspec.to_builtins(file) for file in files],
        "confirm_within_s": confirm_within_s,
        "payload": payload,
        "issued_at": time.time(),
        "expires_at": signed.expires.timestamp(),
    }
    if row is None:
        row = Assignment(device_id=device.id, **values)
    else:
        row.sqlmodel_update(values)
    session.add(row)
    session.flush()
    outgoing.retain(session, topics.device(device.id, "assignment"), payload)
    return row


def change(
    session: Session,
    context: Context,
    device: Device,
    model: str,
    bundle: SignedFile | None,
    deployment: str,
    confirm_within_s: int,
) -> Assignment:
    """Assign another bundle of one model, or none, and leave the device's other models as they are."""
    bundles = bundles_of(current(session, device.id))
    bundles.pop(model, None)
    if bundle is not None:
        bundles[model] = bundle
    return assign(session, context, device, bundles.values(), deployment, confirm_within_s)


def renew(session: Session, context: Context, now: float, limit: int = 200) -> int:
    """Sign again, unchanged, what has used up two thirds of its life; returns how many."""
    life = context.settings.assignment_days * 24 * 3600
    due = session.exec(select(Assignment).where(col(Assignment.expires_at) < now + life / 3).limit(limit)).all()
    renewed = 0
    for row in due:
        device = session.get(Device, row.device_id)
        if device is None or device.revoked_at is not None:
            continue
        assign(session, context, device, bundles_of(row).values(), row.deployment, row.confirm_within_s)
        renewed += 1
    return renewed


def referenced_blobs(session: Session) -> set[str]:
    """Digests of files and chunk indexes that a device may still have to fetch.

    They are named by live assignments, by what a running or stopped rollout would revert to, or by open offers.
    """
    named: list[Mapping[str, Any]] = []
    for bundles in session.exec(select(Assignment.bundles)).all():
        named += bundles
    reverts = (
        select(RolloutDevice.previous)
        .join(Rollout, col(Rollout.id) == col(RolloutDevice.rollout_id))
        .where(col(Rollout.status).in_(("running", "paused")))
    )
    named += [previous for previous in session.exec(reverts).all() if previous]
    offers = (
        select(Round.training, Round.weights)
        .join(Federation, col(Federation.id) == col(Round.federation_id))
        .where(col(Round.state) == "collecting")
    )
    for training, weights in session.exec(offers).all():
        named += [training, weights]
    files = [msgspec.convert(entry, SignedFile) for entry in named]
    return {file.sha256 for file in files} | {file.custom.chunk_index for file in files}


def collect_blobs(session: Session) -> int:
    """Have the broker forget blobs that nothing refers to any more; returns how many."""
    idle = outgoing.retained_blobs(session) - referenced_blobs(session)
    for sha256 in idle:
        outgoing.clear_blob(session, sha256)
    return len(idle)
