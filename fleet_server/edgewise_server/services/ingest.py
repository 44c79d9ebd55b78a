"""Stores the messages of devices' outboxes: one batch, one transaction, each (device, stream, sequence) once.

Returns the acknowledgements that may be sent once the transaction has committed, and not before. How far a stream
may be acknowledged is decided in `streams`; who sends, in `presence`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from edgewise_protocol.messages import Drift, Streamed, Telemetry
from sqlmodel import Session, select

from edgewise_server.models.telemetry import DriftWindow, StoredMessage, StreamCursor
from edgewise_server.services.rows import write_rows
from edgewise_server.services.streams import Arrived, Position, arrive

_MESSAGES: Final = StoredMessage.__table__  # type: ignore[attr-defined]  # SQLModel does not declare it
_CURSORS: Final = StreamCursor.__table__  # type: ignore[attr-defined]
_INSERT: Final = (
    "INSERT INTO messages (device_id, stream, seq, kind, at, received_at, payload) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_COUNT: Final = (
    "INSERT INTO model_windows (device_id, model, version, at, received_at, requests, errors, p50_ms, p95_ms, max_ms)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_BEGIN: Final = "INSERT INTO stream_cursors (through, highest, changed_at, device_id, stream) VALUES (?, ?, ?, ?, ?)"
_MOVE: Final = "UPDATE stream_cursors SET through = ?, highest = ?, changed_at = ? WHERE device_id = ? AND stream = ?"
REFUSED: Final = "refused"
"""Kind of a message that breaks the contract, but names its place in its stream."""

_Stream = tuple[str, str]


@dataclass(frozen=True, slots=True)
class StreamedItem:
    """A message of an outbox stream. `payload` are its bytes, as received."""

    device_id: str
    kind: str
    message: Streamed
    payload: bytes

    def refused(self) -> StreamedItem:
        """The same message as one that cannot be taken: kept as it came, and nothing is read from it.

        Without it the device would send this message for ever, and none after it would be acknowledged.
        """
        return StreamedItem(self.device_id, REFUSED, self.message, self.payload)


def store(session: Session, items: Sequence[StreamedItem], now: float) -> list[tuple[str, str, int]]:
    """Store streamed messages of known devices.

    Returns:
        (device, stream, through) of each stream touched. `through` covers no message that the device holds and that
        is not stored.
    """
    by_stream: dict[_Stream, dict[int, StreamedItem]] = {}
    for item in items:
        by_stream.setdefault((item.device_id, item.message.stream), {})[item.message.seq] = item
    before = _positions(session, by_stream.keys())
    after: dict[_Stream, Arrived] = {}
    fresh: list[StreamedItem] = []
    for stream, arrivals in by_stream.items():
        position = before.get(stream, Position())
        stored = _beyond(session, stream, position) if position.has_gap else ()
        after[stream] = found = arrive(position, stored, {seq: item.message.after for seq, item in arrivals.items()})
        fresh += [arrivals[seq] for seq in found.fresh]
    _insert(session, fresh, now)
    _derive(session, fresh, now)
    _move(session, before, after, now)
    return [(device, stream, found.position.through) for (device, stream), found in after.items()]


def _positions(session: Session, streams: Iterable[_Stream]) -> dict[_Stream, Position]:
    """Where streams stand. The rows are held until the commit, so that a bridge that lost its lease counts nothing."""
    wanted = set(streams)
    cursor = _CURSORS.c
    found = session.connection().execute(
        select(cursor.device_id, cursor.stream, cursor.through, cursor.highest)
        .where(cursor.device_id.in_({d for d, _ in wanted}), cursor.stream.in_({s for _, s in wanted}))
        .with_for_update()
    )
    return {(row[0], row[1]): Position(row[2], row[3]) for row in found}


def _beyond(session: Session, stream: _Stream, position: Position) -> set[int]:
    """The sequences that are stored beyond a gap: at most `MAX_BEYOND_GAP`."""
    statement = select(_MESSAGES.c.seq).where(
        _MESSAGES.c.device_id == stream[0], _MESSAGES.c.stream == stream[1], _MESSAGES.c.seq > position.through
    )
    return set(session.connection().execute(statement).scalars())


def _insert(session: Session, items: Sequence[StreamedItem], now: float) -> None:
    rows = []
    for item in items:
        message, payload = item.message, b"" if item.kind == "drift" else item.payload
        rows.append((item.device_id, message.stream, message.seq, item.kind, message.at, now, payload))
    write_rows(session, _INSERT, rows)


def _derive(session: Session, items: Sequence[StreamedItem], now: float) -> None:
    """Rows that are asked by model and version."""
    counted = []
    for item in items:
        message = item.message
        if item.kind == REFUSED:
            continue
        if isinstance(message, Telemetry):
            for of in message.models:
                latencies = (of.latency_p50_ms, of.latency_p95_ms, of.latency_max_ms)
                counted.append(
                    (item.device_id, of.model, of.version, message.at, now, of.requests, of.errors, *latencies)
                )
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
    write_rows(session, _COUNT, counted)
    session.flush()


def _move(session: Session, before: dict[_Stream, Position], after: dict[_Stream, Arrived], now: float) -> None:
    new: list[tuple[object, ...]] = []
    moved: list[tuple[object, ...]] = []
    for stream, arrived in after.items():
        to = arrived.position
        if before.get(stream) != to:
            (moved if stream in before else new).append((to.through, to.highest, now, *stream))
    write_rows(session, _BEGIN, new)
    write_rows(session, _MOVE, moved)
