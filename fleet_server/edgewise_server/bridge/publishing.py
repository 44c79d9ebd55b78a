"""Publishes retained topics strictly in order, and finds out what the broker holds.

Every acknowledged publication has a number, the mark. The newest mark stands retained on the broker itself: a
broker that comes back empty, or with an older state, shows it, and gets what it lacks.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Final

import msgspec
from edgewise_protocol import topics
from edgewise_protocol.bounds import CHUNK_BYTES, MIB
from sqlmodel import Session, col, select, update

from edgewise_server.blobs.store import BlobStore
from edgewise_server.bridge.client import Packet
from edgewise_server.bridge.connection import Connection
from edgewise_server.db import Database
from edgewise_server.errors import NotFoundError
from edgewise_server.models.base import new_id
from edgewise_server.models.outgoing import BrokerState, Outgoing
from edgewise_server.services import outgoing

BATCH_ROWS: Final = 64
BATCH_BYTES: Final = 8 * MIB
STATE_WAIT_S: Final = 2.0
"""Longest wait for the broker's retained mark; a probe usually tells sooner that it is absent."""


class Mark(msgspec.Struct, frozen=True):
    """Payload of the broker's state topic."""

    instance: str
    mark: int


@dataclass(frozen=True, slots=True)
class _Row:
    id: int
    topic: str
    payload: bytes
    cleared: bool


def state(session: Session) -> BrokerState:
    """The row of the broker's state; makes it once."""
    row = session.get(BrokerState, 1)
    if row is None:
        row = BrokerState(id=1, instance=new_id("fleet"))
        session.add(row)
        session.flush()
    return row


def find_mark(connection: Connection, wait_s: float = STATE_WAIT_S) -> Mark | None:
    """What the broker retains on the state topic; None where it holds nothing.

    Packets that come meanwhile are kept in order.

    Raises:
        BridgeError: the broker does not answer.
    """
    probe = secrets.token_bytes(16)
    connection.subscribe([topics.BROKER_STATE, topics.BROKER_PROBE])
    connection.send(topics.BROKER_PROBE, probe)
    kept: list[Packet] = []
    found = None
    deadline = time.monotonic() + wait_s
    while found is None and not connection.lost and (left := deadline - time.monotonic()) > 0:
        packet = connection.take(left)
        if packet is None:
            break
        kept.append(packet)
        if packet.topic == topics.BROKER_STATE and packet.retained:
            found = decode_mark(packet.payload)
        elif packet.topic == topics.BROKER_PROBE and packet.payload == probe:
            break
    connection.give_back(kept)
    connection.unsubscribe([topics.BROKER_STATE, topics.BROKER_PROBE])
    return found


def decode_mark(payload: bytes) -> Mark | None:
    """A mark, or None where the payload is none of ours."""
    try:
        return msgspec.json.decode(payload, type=Mark)
    except msgspec.MsgspecError:
        return None


def reconcile(session: Session, found: Mark | None) -> int:
    """Mark for publication what the broker does not hold; returns how many topics."""
    row = state(session)
    if found is None or found.instance != row.instance:
        return outgoing.republish_after(session, None)
    if found.mark < row.mark:
        return outgoing.republish_after(session, found.mark)
    return 0


def publish_next(database: Database, blobs: BlobStore, connection: Connection) -> int:
    """Publish the next rows in order, at most `BATCH_ROWS`; returns how many.

    Raises:
        BridgeError: the broker did not acknowledge; the rows stay to be published.
    """
    with database.session(read_only=True) as session:
        rows, missing = _next(session, blobs)
    if missing:
        with database.session() as session:
            for sha256 in missing:
                outgoing.clear_blob(session, sha256)
    if not rows:
        return 0
    connection.publish([(row.topic, row.payload, True) for row in rows])
    with database.session() as session:
        current = state(session)
        for row in rows:
            current.mark += 1
            session.exec(
                update(Outgoing)
                .where(col(Outgoing.id) == row.id, col(Outgoing.mark).is_(None), col(Outgoing.cleared) == row.cleared)
                .values(mark=current.mark)
            )
        session.add(current)
        mark = Mark(current.instance, current.mark)
    connection.publish([(topics.BROKER_STATE, msgspec.json.encode(mark), True)])
    return len(rows)


def _next(session: Session, blobs: BlobStore) -> tuple[list[_Row], set[str]]:
    """The next rows with their payloads, and blobs of which the file is gone."""
    found = session.exec(
        select(Outgoing).where(col(Outgoing.mark).is_(None)).order_by(col(Outgoing.id)).limit(BATCH_ROWS)
    ).all()
    rows: list[_Row] = []
    missing: set[str] = set()
    size = 0
    for row in found:
        size += row.length
        if rows and size > BATCH_BYTES:
            break
        try:
            rows.append(_Row(row.id or 0, row.topic, _payload(row, blobs), row.cleared))
        except NotFoundError:
            missing.add(row.blob_sha256 or "")
    return rows, missing


def _payload(row: Outgoing, blobs: BlobStore) -> bytes:
    if row.cleared:
        return b""
    if row.blob_sha256 is None:
        return row.payload or b""
    with blobs.open(row.blob_sha256) as file:
        file.seek((row.chunk or 0) * CHUNK_BYTES)
        return file.read(CHUNK_BYTES)
