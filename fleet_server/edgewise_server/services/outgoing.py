"""The retained topics that the broker is to hold: an outbox in the caller's transaction.

The bridge publishes the rows strictly in order, so what a document names is retained before the document
is. Blobs live within a budget of retained bytes, since a broker holds them in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from edgewise_protocol import topics
from edgewise_protocol.bounds import CHUNK_BYTES, MAX_PACKET_BYTES, MIB
from edgewise_protocol.chunks import chunk_count
from sqlalchemy import ColumnElement
from sqlmodel import Session, col, delete, func, insert, select, update

from edgewise_server.errors import NotFoundError, QuotaError, TooLargeError
from edgewise_server.models.blobs import Blob
from edgewise_server.models.outgoing import Outgoing

DEFAULT_BUDGET_BYTES: Final = 4096 * MIB
TOMBSTONE_S: Final = 24 * 3600.0
"""How long a cleared topic is remembered."""
_DIGEST_BYTES: Final = 32
_HEADROOM: Final = 1024


def retain(session: Session, topic: str, payload: bytes) -> None:
    """Have the broker retain `payload` on `topic`. Equal to what stands there already: nothing happens.

    Raises:
        TooLargeError: it does not fit in one packet.
    """
    if len(payload) > MAX_PACKET_BYTES - _HEADROOM:
        raise TooLargeError(f"{topic} would have {len(payload)} bytes; a packet holds {MAX_PACKET_BYTES - _HEADROOM}")
    if not payload:
        clear(session, topic)
        return
    old = session.exec(select(Outgoing).where(Outgoing.topic == topic)).first()
    if old is not None:
        if old.payload == payload and not old.cleared:
            return
        session.delete(old)
        session.flush()
    session.add(Outgoing(topic=topic, payload=payload, length=len(payload), changed_at=time.time()))
    session.flush()


def retain_blob(session: Session, sha256: str, *, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
    """Have the broker retain all chunks of a stored blob, and its chunk index. Repeating it changes nothing.

    Raises:
        NotFoundError: no such blob is stored.
        QuotaError: the retained bytes would exceed the budget.
    """
    blob = session.get(Blob, sha256)
    if blob is None:
        raise NotFoundError(f"there is no blob {sha256[:12]}")
    _retain_chunks(session, blob.sha256, blob.size, budget_bytes)
    if blob.chunk_index and blob.chunk_index != sha256:
        _retain_chunks(session, blob.chunk_index, _DIGEST_BYTES * chunk_count(blob.size), budget_bytes)


def _retain_chunks(session: Session, sha256: str, size: int, budget_bytes: int) -> None:
    number = chunk_count(size)
    live = select(func.count()).select_from(Outgoing).where(Outgoing.blob_sha256 == sha256, ~col(Outgoing.cleared))
    if session.exec(live).one() == number:
        return
    if retained_bytes(session) + size > budget_bytes:
        raise QuotaError(
            f"retaining the {size} bytes of {sha256[:12]} would exceed the broker's budget of {budget_bytes} bytes: "
            "raise retained_budget_bytes in server.toml, and give the broker as much memory"
        )
    session.exec(delete(Outgoing).where(col(Outgoing.blob_sha256) == sha256))
    now = time.time()
    rows = [
        {
            "topic": topics.blob(sha256, n),
            "blob_sha256": sha256,
            "chunk": n,
            "length": min(CHUNK_BYTES, size - n * CHUNK_BYTES),
            "cleared": False,
            "changed_at": now,
        }
        for n in range(number)
    ]
    session.execute(insert(Outgoing), rows)


def clear(session: Session, topic: str) -> None:
    """Have the broker forget a topic, whoever had it retained: a deleted device's own status is one."""
    _clear(session, col(Outgoing.topic) == topic)
    if session.exec(select(Outgoing.id).where(Outgoing.topic == topic)).first() is None:
        session.add(Outgoing(topic=topic, cleared=True, changed_at=time.time()))
        session.flush()


def clear_blob(session: Session, sha256: str) -> None:
    """Have the broker forget a blob's chunks."""
    _clear(session, col(Outgoing.blob_sha256) == sha256)


def _clear(session: Session, which: ColumnElement[bool]) -> None:
    session.exec(
        update(Outgoing)
        .where(which, ~col(Outgoing.cleared))
        .values(cleared=True, payload=None, length=0, mark=None, changed_at=time.time())
    )


def republish(session: Session, wanted: Iterable[str]) -> int:
    """Publish retained topics again, e.g. because a device did not find them; returns how many were known."""
    names = list(wanted)
    if not names:
        return 0
    found = session.exec(
        update(Outgoing).where(col(Outgoing.topic).in_(names), ~col(Outgoing.cleared)).values(mark=None)
    )
    return int(found.rowcount)


def republish_after(session: Session, mark: int | None) -> int:
    """Publish again what the broker acknowledged after `mark`; None: everything. Returns how many."""
    which = col(Outgoing.mark).is_not(None) if mark is None else col(Outgoing.mark) > mark
    found = session.exec(update(Outgoing).where(which).values(mark=None))
    return int(found.rowcount)


def retained_bytes(session: Session) -> int:
    """Payload bytes that the broker holds, or is about to."""
    return int(session.exec(select(func.coalesce(func.sum(Outgoing.length), 0))).one())


def retained_blobs(session: Session) -> set[str]:
    """Digests of the blobs of which chunks are retained."""
    found = session.exec(
        select(Outgoing.blob_sha256).where(col(Outgoing.blob_sha256).is_not(None), ~col(Outgoing.cleared)).distinct()
    )
    return {sha256 for sha256 in found if sha256}


def forget_tombstones(session: Session, now: float) -> None:
    """Drop cleared rows whose empty message was published long ago."""
    session.exec(
        delete(Outgoing).where(
            col(Outgoing.cleared), col(Outgoing.mark).is_not(None), col(Outgoing.changed_at) < now - TOMBSTONE_S
        )
    )
