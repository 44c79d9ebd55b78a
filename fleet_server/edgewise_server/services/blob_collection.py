"""Collects files that nothing refers to any more, after a time of grace in which an upload waits to be signed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import msgspec
from edgewise_protocol.targets import SignedFile
from sqlmodel import Session, col, delete, select, update

from edgewise_server.blobs.store import BlobStore
from edgewise_server.db import hold_lock
from edgewise_server.models.blobs import Blob
from edgewise_server.models.federation import Federation, Round
from edgewise_server.models.jobs import Job
from edgewise_server.models.registry import Target
from edgewise_server.models.rollouts import RolloutDevice
from edgewise_server.services import assignments, blobs, leases, outgoing

BACKUP_LEASE: Final = "backup"
"""While somebody holds it, nothing is collected: a backup copies what its snapshot names."""
BATCH: Final = 500
_LIVE_FEDERATIONS: Final = ("running", "promoting")


def referenced(session: Session, kept_federations_since: float) -> set[str]:
    """Digests that something refers to: trusted targets, assignments, what a revert would name, rounds, open jobs.

    Args:
        kept_federations_since: results of federations that ended earlier are not kept, but for the last one.
    """
    found = assignments.referenced_blobs(session) | outgoing.retained_blobs(session)
    found |= set(session.exec(select(Target.sha256).where(col(Target.trusted))).all())
    for previous in session.exec(select(RolloutDevice.previous)).all():
        if previous:
            found.add(msgspec.convert(previous, SignedFile).sha256)
    for federation in session.exec(select(Federation)).all():
        found |= {federation.weights_sha256 or "", federation.initial_sha256 or ""}
        if federation.status in _LIVE_FEDERATIONS or (federation.finished_at or 0.0) >= kept_federations_since:
            found |= set(_of_rounds(session, federation.id))
    open_jobs = select(Job.payload).where(col(Job.state).in_(("queued", "claimed")))
    for payload in session.exec(open_jobs).all():
        found |= set(_digests(payload))
    indexes = select(Blob.chunk_index).where(col(Blob.sha256).in_(found)) if len(found) < BATCH else None
    if indexes is not None:
        return found | set(session.exec(indexes).all())
    rows = session.exec(select(Blob.sha256, Blob.chunk_index)).all()
    return found | {index for sha256, index in rows if sha256 in found}


def collect(session: Session, store: BlobStore, now: float, *, grace_s: float, kept_federations_since: float) -> int:
    """Remove one batch of files, and their rows; returns how many.

    A row that a target names stays, marked: a path once signed is never used for other bytes.
    """
    hold_lock(session, blobs.LOCK)
    if leases.is_held(session, BACKUP_LEASE, now):
        return 0
    kept = referenced(session, kept_federations_since)
    named = set(session.exec(select(Target.sha256)).all())
    removed = 0
    for blob in session.exec(select(Blob).where(~col(Blob.dropped))).all():
        if blob.sha256 in kept or now - blob.created_at.timestamp() < grace_s or _is_young(store, blob.sha256, grace_s):
            continue
        if blob.sha256 in named:
            session.exec(update(Blob).where(col(Blob.sha256) == blob.sha256).values(dropped=True))
        else:
            session.exec(delete(Blob).where(col(Blob.sha256) == blob.sha256))
        store.remove(blob.sha256)
        removed += 1
        if removed == BATCH:
            break
    return removed


def collect_strays(session: Session, store: BlobStore, *, grace_s: float) -> int:
    """Remove files without a row and parts of uploads, which a crash has left; returns how many."""
    hold_lock(session, blobs.LOCK)
    known = set(session.exec(select(Blob.sha256).where(~col(Blob.dropped))).all())
    removed = 0
    for path in store.files():
        if path.name not in known and _age_s(path.stat().st_mtime) >= grace_s:
            path.unlink(missing_ok=True)
            removed += 1
            if removed == BATCH:
                break
    return removed


def _is_young(store: BlobStore, sha256: str, grace_s: float) -> bool:
    """Whether the file came again after its row was made."""
    try:
        return _age_s(store.path(sha256).stat().st_mtime) < grace_s
    except FileNotFoundError:
        return False


def _age_s(mtime: float) -> float:
    return time.time() - mtime


def _of_rounds(session: Session, federation_id: str) -> Iterator[str]:
    statement = select(Round.weights, Round.result_sha256).where(Round.federation_id == federation_id)
    for weights, result in session.exec(statement).all():
        yield from _digests(weights)
        if result:
            yield result


def _digests(value: object) -> Iterator[str]:
    """Everything in a document that could be a digest."""
    if isinstance(value, str) and len(value) == 64:
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _digests(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _digests(inner)
