"""Carries out what a batch of items means, in one transaction, and returns the answers to send after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgewise_protocol import topics
from edgewise_protocol.messages import Ack, Want
from sqlmodel import Session

from edgewise_server.bridge.sorting import Item, ReadyItem, ReportedItem, StatusItem, WantItem
from edgewise_server.context import Context
from edgewise_server.errors import NotFoundError, QuotaError
from edgewise_server.models.devices import Device
from edgewise_server.services import assignments, ingest, outgoing, updates
from edgewise_server.services.ingest import StreamedItem
from edgewise_server.services.updates import ChunkItem
from edgewise_server.uploads.store import UploadStore

MAX_REPUBLISHED: Final = 256
"""Topics that one `want` may have published again."""

Answers = list[tuple[str, Ack]]


def take_in(session: Session, context: Context, uploads: UploadStore, items: Sequence[Item], now: float) -> Answers:
    """Store a batch. Items of unknown or revoked devices are dropped.

    Returns:
        (device, ack) to be published once the caller's transaction has committed.
    """
    devices = ingest.known_devices(session, (item.device_id for item in items))
    known = [item for item in items if item.device_id in devices]
    for item in known:
        if isinstance(item, StatusItem):
            ingest.record_status(devices[item.device_id], item.status, now)
        elif isinstance(item, ReportedItem):
            ingest.record_reported(devices[item.device_id], item.reported)
    live = {item.device_id for item in known if not isinstance(item, StatusItem | ReportedItem)}
    ingest.touch((devices[device_id] for device_id in live), now)
    session.add_all(devices.values())
    session.flush()

    answers: Answers = []
    streamed = [item for item in known if isinstance(item, StreamedItem)]
    if streamed:
        answers += ingest.store(session, streamed, now, context.settings.gap_s)
    for item in known:
        if isinstance(item, WantItem):
            answer_want(session, context, devices[item.device_id], item.want)
        elif isinstance(item, ReadyItem):
            answers += updates.announce(session, devices[item.device_id], item.ready, now)
    chunks = [item for item in known if isinstance(item, ChunkItem)]
    if chunks:
        answers += updates.receive(session, context.blobs, uploads, chunks, now)
    return answers


def answer_want(session: Session, context: Context, device: Device, want: Want) -> int:
    """Have the chunks and metadata that a device did not find published again; returns how many.

    Nothing is published because a device asks for it: only what is retained already, or what the device's own
    assignment names.
    """
    entitled = {
        sha256
        for file in assignments.bundles_of(assignments.current(session, device.id)).values()
        for sha256 in (file.sha256, file.custom.chunk_index)
    }
    files = {
        file.custom.chunk_index: file.sha256
        for file in assignments.bundles_of(assignments.current(session, device.id)).values()
    }
    wanted = [topics.metadata(name) for name in want.metadata]
    for blob in want.blobs:
        if blob.sha256 in entitled:
            try:
                outgoing.retain_blob(
                    session,
                    files.get(blob.sha256, blob.sha256),
                    budget_bytes=context.settings.retained_budget_bytes,
                )
            except (NotFoundError, QuotaError):
                continue
        wanted += [topics.blob(blob.sha256, n) for n in blob.chunks if 0 <= n < 1_000_000]
    return outgoing.republish(session, wanted[:MAX_REPUBLISHED])
