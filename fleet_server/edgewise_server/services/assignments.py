"""Gives devices their assignments: signs, remembers, and retains what the device needs before it is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from edgewise_protocol import topics
from edgewise_protocol.bounds import MAX_ASSIGNMENT_BYTES
from edgewise_protocol.metadata import parse_targets
from edgewise_protocol.targets import SignedFile
from sqlmodel import Session, col, select

from edgewise_server.context import Context
from edgewise_server.errors import ServerError
from edgewise_server.models.assignments import Assignment
from edgewise_server.models.devices import Device
from edgewise_server.models.federation import Federation, Round
from edgewise_server.models.rollouts import Rollout, RolloutDevice
from edgewise_server.services import outgoing

NO_DEPLOYMENT = "none"
BATCH: Final = 200
"""Assignments that one transaction signs again: it keeps other writers of SQLite out for about a second."""

log = logging.getLogger(__name__)


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
    retained: set[str] | None = None,
) -> Assignment:
    """Sign and retain a new assignment, all in the caller's transaction.

    Args:
        bundles: one a model: all that the device is to run, not only what changes.
        retained: digests of files that this transaction has had retained already: they are not looked at again.

    Raises:
        QuotaError: the broker's budget does not hold the bundles.
        ServerError: the director refuses; see `edgewise_server.trust.director`.
    """
    files = tuple(sorted(bundles, key=lambda file: file.path))
    for sha256 in {file.sha256 for file in files} - (retained or set()):
        outgoing.retain_blob(session, sha256, budget_bytes=context.settings.retained_budget_bytes)
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


class Renewed(NamedTuple):
    """One batch of `renew`."""

    signed: int
    last: str
    """The last device that was looked at; empty when no device is left behind it."""


def renew(session: Session, context: Context, now: float, *, after: str = "", limit: int = BATCH) -> Renewed:
    """Sign again, unchanged, what has used up two thirds of its life: at most `limit` devices, by id, behind `after`.

    A device that may not be assigned what it runs any more, e.g. since a floor was raised, keeps its old
    assignment until an operator gives it another; it must not keep the others from theirs.
    """
    life = context.settings.assignment_days * 24 * 3600
    due = (
        select(Assignment, Device)
        .join(Device, col(Device.id) == col(Assignment.device_id))
        .where(
            col(Assignment.expires_at) < now + life / 3,
            col(Device.revoked_at).is_(None),
            col(Assignment.device_id) > after,
        )
        .order_by(col(Assignment.device_id))
        .limit(limit)
    )
    found, signed, device_id = session.exec(due).all(), 0, ""
    retained: set[str] = set()
    for row, device in found:
        device_id, bundles = device.id, bundles_of(row).values()
        try:
            with session.begin_nested():
                assign(session, context, device, bundles, row.deployment, row.confirm_within_s, retained)
            retained |= {file.sha256 for file in bundles}
            signed += 1
        except ServerError as error:
            log.warning("the assignment of %s is not signed again: %s (%s)", device_id, error, error.code)
    return Renewed(signed, device_id if len(found) == limit else "")


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
