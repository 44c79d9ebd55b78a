"""Turns a packet from a device into a typed item, or says why it is not one. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec
from edgewise_protocol import topics
from edgewise_protocol.bounds import CHUNK_BYTES, MAX_CONTROL_BYTES, MAX_DRIFT_BYTES
from edgewise_protocol.errors import MalformedError, ProtocolError
from edgewise_protocol.messages import Drift, Event, Reported, Status, Streamed, Telemetry, UpdateReady, Want, decode

from edgewise_server.services.ingest import StreamedItem
from edgewise_server.services.updates import ChunkItem

SUBSCRIPTIONS: Final = (
    *(f"{topics.ALL_DEVICES}/{leaf}" for leaf in ("status", "reported")),
    *(f"{topics.ALL_DEVICES}/{stream}" for stream in topics.DEVICE_STREAMS),
    f"{topics.ALL_DEVICES}/want",
    f"{topics.ALL_DEVICES}/update-ready",
    topics.ALL_UPDATES,
)
"""What the bridge listens to, by explicit leaves: its own acks and assignments do not come back."""


@dataclass(frozen=True, slots=True)
class StatusItem:
    device_id: str
    status: Status


@dataclass(frozen=True, slots=True)
class ReportedItem:
    device_id: str
    reported: Reported


@dataclass(frozen=True, slots=True)
class WantItem:
    device_id: str
    want: Want


@dataclass(frozen=True, slots=True)
class ReadyItem:
    device_id: str
    ready: UpdateReady


_STREAMS: Final[dict[str, tuple[type[Streamed], int]]] = {
    "event": (Event, MAX_CONTROL_BYTES),
    "telemetry": (Telemetry, MAX_CONTROL_BYTES),
    "drift": (Drift, MAX_DRIFT_BYTES),
}
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""U+0000 in JSON. PostgreSQL stores none in a text; found there, it would cost the whole batch a commit for each."""
_place: Final = msgspec.json.Decoder(Streamed)

Item = StatusItem | ReportedItem | StreamedItem | WantItem | ReadyItem | ChunkItem


def sort(topic: str, payload: bytes) -> Item | None:
    """Parse a packet; None for a cleared retained topic.

    A message of an outbox that breaks the contract, but names its place in its stream, becomes a refused item.

    Raises:
        ProtocolError: the topic or the payload breaks the contract.
    """
    parsed = topics.parse_device(topic)
    device = parsed.device_id
    if parsed.leaf == "update":
        if parsed.round_id is None or parsed.chunk is None or not 0 < len(payload) <= CHUNK_BYTES:
            raise MalformedError(f"a chunk of {len(payload)} bytes; 1 to {CHUNK_BYTES} are allowed")
        return ChunkItem(device, parsed.round_id, parsed.chunk, payload)
    if not payload:
        return None
    if parsed.leaf not in _STREAMS and _NUL.search(payload):
        raise MalformedError("a text holds U+0000")
    match parsed.leaf:
        case "status":
            return StatusItem(device, decode(Status, payload))
        case "reported":
            return ReportedItem(device, decode(Reported, payload))
        case "event" | "telemetry" | "drift" as leaf:
            return _streamed(device, leaf, payload)
        case "want":
            return WantItem(device, decode(Want, payload, MAX_CONTROL_BYTES))
        case "update-ready":
            return ReadyItem(device, decode(UpdateReady, payload))
        case leaf:
            raise MalformedError(f"nothing is expected on the topic {leaf!r}")


def _streamed(device_id: str, leaf: str, payload: bytes) -> StreamedItem:
    kind, limit = _STREAMS[leaf]
    try:
        return StreamedItem(device_id, leaf, _named(decode(kind, payload, limit)), payload)
    except ProtocolError as error:
        if len(payload) > limit:
            raise
        try:
            place = _place.decode(payload)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise error from None
        return StreamedItem(device_id, leaf, _named(place), payload).refused()


def _named(message: Streamed) -> Streamed:
    """The message, if the name of its stream can be a key in any database: of the rest only the bytes are kept."""
    if not message.stream.isprintable():
        raise MalformedError("the name of a stream is not printable")
    return message
