"""Carries out what a batch of items means, in one transaction, and returns the answers to send after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from edgewise_protocol import topics
from edgewise_protocol.messages import Ack, Want
from sqlmodel import Session

from edgewise_server.bridge.sorting import Item, ReadyItem, ReportedItem, StatusItem, WantItem
from edgewise_server.context import Context
from edgewise_server.errors import NotFoundError, QuotaError
from edgewise_server.models.devices import Device
from edgewise_server.services import assignments, clones, ingest, outgoing, presence, renewals, updates
from edgewise_server.services.ingest import StreamedItem
from edgewise_server.services.updates import ChunkItem
from edgewise_server.uploads.store import UploadStore

MAX_REPUBLISHED: Final = 256
"""Topics that one `want` may have published again."""


@dataclass(slots=True)
class Answers:
    """What is to be said to devices after the commit."""

    stored: list[tuple[str, str, int]] = field(default_factory=list)
    """(device, stream, through)"""
    others: list[tuple[str, Ack]] = field(default_factory=list)

    def add(self, more: Answers) -> None:
        self.stored += more.stored
        self.others += more.others


def take_in(session: Session, context: Context, uploads: UploadStore, items: Sequence[Item], now: float) -> Answers:
    """Store a batch; items of unknown or revoked devices are dropped. Answer once the transaction has committed."""
    ids = presence.known_ids(session, (item.device_id for item in items))
    known = [item for item in items if item.device_id in ids]
    devices = presence.load(
        session, {item.device_id for item in known if not isinstance(item, StreamedItem | ChunkItem)}
    )
    answers = Answers()
    for item in known:
        if isinstance(item, StatusItem):
            device = devices[item.device_id]
            if presence.record_status(device, item.status, now):
                renewals.confirm(session, device, item.status)
                clones.record(session, device, item.status, datetime.fromtimestamp(now, UTC))
                if item.status.online and device.cloned_at is not None:
                    answers.others.append((device.id, Ack(identity=clones.KIND)))
        elif isinstance(item, ReportedItem):
            presence.record_reported(devices[item.device_id], item.reported)
    session.flush()
    live = {item.device_id for item in known if not isinstance(item, StatusItem | ReportedItem)}
    presence.touch(session, live, now)

    streamed = [item for item in known if isinstance(item, StreamedItem)]
    if streamed:
        answers.stored = ingest.store(session, streamed, now)
    for item in known:
        if isinstance(item, WantItem):
            answer_want(session, context, devices[item.device_id], item.want)
        elif isinstance(item, ReadyItem):
            answers.others += updates.announce(session, devices[item.device_id], item.ready, now)
    chunks = [item for item in known if isinstance(item, ChunkItem)]
    if chunks:
        answers.others += updates.receive(session, context.blobs, uploads, chunks, now)
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
