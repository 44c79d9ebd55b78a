"""Stores what devices sent: one batch, one transaction, duplicates dropped by (device, stream, sequence).

Returns the acknowledgements that may be sent once the transaction has committed, and not before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from edgewise_protocol.messages import Ack, Drift, Event, Reported, Status, Telemetry
from sqlmodel import Session, col, insert, select

from edgewise_server.models.devices import Device
from edgewise_server.models.telemetry import DriftWindow, ModelWindow, StoredMessage, StreamCursor

_MESSAGES: Final = StoredMessage.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it
_LOOKAHEAD: Final = 10_000


@dataclass(frozen=True, slots=True)
class StreamedItem:
    """A message of an outbox stream. `payload` are its bytes, as received."""

    device_id: str
    kind: str
    message: Event | Telemetry | Drift
    payload: bytes


Key = tuple[str, str, int]


def known_devices(session: Session, ids: Iterable[str]) -> dict[str, Device]:
    """The devices among `ids` that are enrolled and not revoked."""
    wanted = list(set(ids))
    found = session.exec(select(Device).where(col(Device.id).in_(wanted), col(Device.revoked_at).is_(None))).all()
    return {device.id: device for device in found}


def record_status(device: Device, status: Status, now: float) -> bool:
    """Take in a birth or a last will; returns whether it counted.

    A will of another session than the newest birth's is stale, unless it was made after that birth, which the
    server then has not seen.
    """
    if not status.online:
        newer = device.status_at is None or status.at > device.status_at.timestamp()
        if status.session != device.session_id and not newer:
            return False
        device.online = False
        return True
    device.online = True
    device.session_id = status.session
    device.status_at = _time(status.at or now)
    device.last_seen_at = _time(now)
    device.serving_url = status.serving_url
    if status.facts is not None:
        device.facts = msgspec.to_builtins(status.facts)
        device.simulated = status.facts.simulated
    return True


def record_reported(device: Device, reported: Reported) -> None:
    """Take in what the device says that it runs."""
    device.reported = msgspec.to_builtins(reported)


def touch(devices: Iterable[Device], now: float) -> None:
    """Devices were heard of."""
    for device in devices:
        device.last_seen_at = _time(now)


def store(session: Session, items: Sequence[StreamedItem], now: float, gap_s: float) -> list[tuple[str, Ack]]:
    """Store streamed messages of known devices.

    Returns:
        (device, ack) for each stream touched. `through` covers no message that is not stored, but for gaps
        older than `gap_s`: a bounded outbox may have given those up.
    """
    unique: dict[Key, StreamedItem] = {}
    for item in items:
        unique.setdefault((item.device_id, item.message.stream, item.message.seq), item)
    new = _insert(session, unique, now)
    _derive(session, [unique[key] for key in unique if key in new], now)
    streams = sorted({(device_id, stream) for device_id, stream, _ in unique})
    return [(device, _advance(session, device, stream, now, gap_s)) for device, stream in streams]


def skip_gaps(session: Session, now: float, gap_s: float) -> list[tuple[str, Ack]]:
    """Pass over gaps that have been waited for long enough."""
    old = select(StreamCursor).where(col(StreamCursor.gap_since) <= now - gap_s).limit(1_000)
    cursors = [(cursor.device_id, cursor.stream) for cursor in session.exec(old).all()]
    return [(device, _advance(session, device, stream, now, gap_s)) for device, stream in cursors]


def _insert(session: Session, items: dict[Key, StreamedItem], now: float) -> set[Key]:
    """Insert; returns the keys of those that were not there yet."""
    known = _known(session, items)
    new = items.keys() - known
    rows = [
        {
            "device_id": item.device_id,
            "stream": item.message.stream,
            "seq": item.message.seq,
            "kind": item.kind,
            "at": item.message.at,
            "received_at": now,
            "payload": b"" if item.kind == "drift" else item.payload,
        }
        for key, item in items.items()
        if key in new
    ]
    if rows:
        session.connection().execute(insert(_MESSAGES), rows)
    return new


def _known(session: Session, keys: Iterable[Key]) -> set[Key]:
    """Those of the keys that are stored. One bridge at a time stores, so none comes between this and the insert."""
    by_stream: dict[tuple[str, str], list[int]] = defaultdict(list)
    for device_id, stream, seq in keys:
        by_stream[device_id, stream].append(seq)
    known: set[Key] = set()
    connection = session.connection()
    for (device_id, stream), seqs in by_stream.items():
        statement = select(_MESSAGES.c.seq).where(
            _MESSAGES.c.device_id == device_id,
            _MESSAGES.c.stream == stream,
            _MESSAGES.c.seq.in_(seqs),
        )
        known |= {(device_id, stream, seq) for (seq,) in connection.execute(statement)}
    return known


def _derive(session: Session, items: Sequence[StreamedItem], now: float) -> None:
    """Rows that are asked by model and version."""
    counters: list[dict[str, Any]] = []
    for item in items:
        message = item.message
        if isinstance(message, Telemetry):
            counters += [
                {
                    "device_id": item.device_id,
                    "model": counted.model,
                    "version": counted.version,
                    "at": message.at,
                    "received_at": now,
                    "requests": counted.requests,
                    "errors": counted.errors,
                    "p50_ms": counted.latency_p50_ms,
                    "p95_ms": counted.latency_p95_ms,
                    "max_ms": counted.latency_max_ms,
                }
                for counted in message.models
            ]
        elif isinstance(message, Drift):
            session.add(
                DriftWindow(
                    device_id=item.device_id,
                    model=message.model,
                    version=message.version,
                    at=message.at,
                    received_at=now,
                    samples=message.samples,
                    sketches=msgspec.json.encode(message.features),
                    simulated=message.simulated,
                )
            )
    if counters:
        session.execute(insert(ModelWindow), counters)
    session.flush()


def _advance(session: Session, device_id: str, stream: str, now: float, gap_s: float) -> Ack:
    cursor = session.get(StreamCursor, (device_id, stream))
    if cursor is None:
        cursor = StreamCursor(device_id=device_id, stream=stream, through=0)
        session.add(cursor)
    above = session.exec(
        select(StoredMessage.seq)
        .where(
            StoredMessage.device_id == device_id,
            StoredMessage.stream == stream,
            col(StoredMessage.seq) > cursor.through,
        )
        .order_by(col(StoredMessage.seq))
        .limit(_LOOKAHEAD)
    ).all()
    through, gap_since = follow(cursor.through, above, cursor.gap_since, now, gap_s)
    cursor.through, cursor.gap_since, cursor.changed_at = through, gap_since, now
    session.flush()
    return Ack(stream=stream, through=through)


def follow(
    through: int, above: Sequence[int], gap_since: float | None, now: float, gap_s: float
) -> tuple[int, float | None]:
    """How far a stream is stored, given the stored sequences above `through` in ascending order. Pure.

    Returns:
        the new `through`, and since when a gap is waited for. A gap waited for `gap_s` is passed over, with
        any later one: the device sent what it had in order.
    """
    waited = gap_since is not None and now - gap_since >= gap_s
    first = through
    for seq in above:
        if seq != through + 1 and not waited:
            same_gap = gap_since is not None and through == first
            return through, gap_since if same_gap else now
        through = seq
    return through, None


def _time(seconds: float) -> datetime:
    """A time that any database can hold, whatever the device's clock says."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), 4e9), UTC)
