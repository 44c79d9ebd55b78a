"""Takes updates of federated clients in: who may send, how many chunks at a time, and when one is complete.

A client announces its update and gets credits; it sends that many chunks beyond `chunks_through` and no more.
So the memory and disk that uploads use are bounded by what the server grants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from edgewise_protocol.bounds import CHUNK_BYTES, KIB
from edgewise_protocol.chunks import chunk_count
from edgewise_protocol.messages import Ack, UpdateReady
from edgewise_protocol.rounds import OfferBody
from edgewise_protocol.targets import SignedFile
from sqlmodel import Session, col, func, select

from edgewise_server.federation.facts import MAX_CLIENTS, FederationSettings
from edgewise_server.federation.updates import UpdateError, check_update, read_layout
from edgewise_server.models.devices import Device
from edgewise_server.models.federation import Federation, Round, RoundClient

if TYPE_CHECKING:
    from edgewise_server.blobs.store import BlobStore
    from edgewise_server.uploads.store import UploadStore

WINDOW: Final = 16
"""Chunks that a client may have under way: 2 MiB."""
_HEADER_ROOM: Final = 64 * KIB
"""By how much an update may be longer than the weights it started from."""

Answers = list[tuple[str, Ack]]


@dataclass(frozen=True, slots=True)
class ChunkItem:
    device_id: str
    round_id: str
    number: int
    payload: bytes


def announce(session: Session, device: Device, ready: UpdateReady, now: float) -> Answers:
    """A client has trained. It is queued, refused, or told how far its update is stored."""
    round_ = session.get(Round, ready.round_id)
    client = session.get(RoundClient, (ready.round_id, device.id))
    if client is not None and client.state in ("stored", "aggregated"):
        return [(device.id, _complete(client))]  # its answer was lost; whether the round is over does not matter
    refusal = _refusal(session, round_, device, ready)
    if refusal or round_ is None:
        return [(device.id, Ack(round_id=ready.round_id, error=refusal))]
    if client is None or client.sha256 != ready.sha256:
        if client is not None:
            session.delete(client)
            session.flush()
        client = RoundClient(
            round_id=round_.id,
            device_id=device.id,
            state="waiting",
            length=ready.length,
            sha256=ready.sha256,
            samples=ready.samples,
            metrics=dict(list(ready.metrics.items())[:64]),
            simulated=ready.simulated or device.simulated,
            announced_at=now,
            changed_at=now,
        )
        session.add(client)
        session.flush()
    elif client.state == "refused":
        return [(device.id, Ack(round_id=round_.id, error=client.error))]
    granted = grant(session, round_, now)
    if any(device_id == device.id for device_id, _ in granted):
        return granted
    return [*granted, (device.id, _progress(client))]


def _refusal(session: Session, round_: Round | None, device: Device, ready: UpdateReady) -> str:
    """Why the update is not taken; empty if it is."""
    if round_ is None:
        return "round-unknown: there is no such round"
    if round_.state != "collecting":
        return f"round-closed: round {round_.number} takes no more updates; it is {round_.state}"
    body = msgspec.convert(round_.body, OfferBody)
    if body.channel != device.channel or (body.devices and device.id not in body.devices):
        return "round-not-asked: this device was not asked in this round"
    weights = msgspec.convert(round_.weights, SignedFile)
    if ready.length > weights.length + _HEADER_ROOM:
        return f"update-too-large: it would have {ready.length} bytes; the round's weights have {weights.length}"
    if session.get(RoundClient, (round_.id, device.id)) is None and _count(session, round_.id) >= MAX_CLIENTS:
        return f"round-full: the round has {MAX_CLIENTS} clients"
    return ""


def grant(session: Session, round_: Round, now: float) -> Answers:
    """Give free places to the clients that wait longest."""
    federation = session.get(Federation, round_.federation_id)
    if federation is None or round_.state != "collecting":
        return []
    places = FederationSettings(**federation.settings).max_uploads - _count(session, round_.id, "uploading")
    if places <= 0:
        return []
    waiting = session.exec(
        select(RoundClient)
        .where(RoundClient.round_id == round_.id, RoundClient.state == "waiting")
        .order_by(col(RoundClient.announced_at), col(RoundClient.device_id))
        .limit(places)
    ).all()
    for client in waiting:
        client.state, client.changed_at = "uploading", now
    session.flush()
    return [(client.device_id, _progress(client)) for client in waiting]


def receive(
    session: Session, blobs: BlobStore, uploads: UploadStore, items: Sequence[ChunkItem], now: float
) -> Answers:
    """Write chunks to the disk and count them; the caller acknowledges after its commit.

    Chunks come in order; one that is not the next is dropped, and the answer says which is.
    """
    answers: Answers = []
    batches: dict[tuple[str, str], list[ChunkItem]] = {}
    for item in items:
        batches.setdefault((item.round_id, item.device_id), []).append(item)
    for (round_id, device_id), batch in batches.items():
        answers += _receive_one(session, blobs, uploads, round_id, device_id, batch, now)
    return answers


def _receive_one(
    session: Session,
    blobs: BlobStore,
    uploads: UploadStore,
    round_id: str,
    device_id: str,
    batch: Sequence[ChunkItem],
    now: float,
) -> Answers:
    round_, client = session.get(Round, round_id), session.get(RoundClient, (round_id, device_id))
    if round_ is None or client is None:
        return [(device_id, Ack(round_id=round_id, error="update-not-announced: announce the update first"))]
    if client.state in ("stored", "aggregated"):
        return [(device_id, _complete(client))]
    if round_.state != "collecting":
        return [(device_id, Ack(round_id=round_id, error=f"round-closed: the round is {round_.state}"))]
    if client.state == "refused":
        return [(device_id, Ack(round_id=round_id, error=client.error))]
    if client.state == "uploading":
        accepted = _in_order(client, batch)
        if accepted:
            uploads.write(round_id, device_id, client.chunks_through, accepted)
            client.chunks_through += len(accepted)
            client.changed_at = now
        if client.chunks_through == chunk_count(client.length):
            return [*_finish(session, blobs, uploads, round_, client), *grant(session, round_, now)]
        session.flush()
    return [(device_id, _progress(client))]


def _in_order(client: RoundClient, batch: Sequence[ChunkItem]) -> list[bytes]:
    """The chunks that continue what is stored, each of its right size."""
    accepted: list[bytes] = []
    total = chunk_count(client.length)
    for item in batch:
        n = client.chunks_through + len(accepted)
        size = min(CHUNK_BYTES, client.length - n * CHUNK_BYTES)
        if item.number == n < total and len(item.payload) == size:
            accepted.append(item.payload)
    return accepted


def _finish(session: Session, blobs: BlobStore, uploads: UploadStore, round_: Round, client: RoundClient) -> Answers:
    found = uploads.digest(client.round_id, client.device_id, client.length)
    error = "" if found == client.sha256 else "update-damaged: the update does not have the digest that was announced"
    if not error:
        weights = msgspec.convert(round_.weights, SignedFile)
        try:
            check_update(uploads.path(client.round_id, client.device_id), read_layout(blobs.path(weights.sha256)))
        except UpdateError as refused:
            error = f"{refused.code}: {refused}"
    if error:
        uploads.remove(client.round_id, client.device_id)
    client.state, client.error = ("refused", error[:2000]) if error else ("stored", "")
    session.flush()
    if error:
        return [(client.device_id, Ack(round_id=client.round_id, error=client.error))]
    return [(client.device_id, _complete(client))]


def free_stalled(session: Session, now: float, stall_s: float) -> Answers:
    """Move uploads that stand still to the end of the queue, and give their places on."""
    answers: Answers = []
    rounds = session.exec(select(Round).where(Round.state == "collecting")).all()
    for round_ in rounds:
        stalled = session.exec(
            select(RoundClient).where(
                RoundClient.round_id == round_.id,
                RoundClient.state == "uploading",
                col(RoundClient.changed_at) < now - stall_s,
            )
        ).all()
        for client in stalled:
            client.state, client.announced_at = "waiting", now
        session.flush()
        answers += grant(session, round_, now)
    return answers


def _progress(client: RoundClient) -> Ack:
    left = chunk_count(client.length) - client.chunks_through
    credits = min(WINDOW, left) if client.state == "uploading" else 0
    return Ack(round_id=client.round_id, chunks_through=client.chunks_through, credits=credits)


def _complete(client: RoundClient) -> Ack:
    return Ack(round_id=client.round_id, chunks_through=chunk_count(client.length), complete=True)


def _count(session: Session, round_id: str, state: str | None = None) -> int:
    statement = select(func.count()).select_from(RoundClient).where(RoundClient.round_id == round_id)
    if state is not None:
        statement = statement.where(RoundClient.state == state)
    return int(session.exec(statement).one())
