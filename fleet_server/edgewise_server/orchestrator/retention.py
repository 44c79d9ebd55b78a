"""The orchestrator's rare work: forgets what is old, and collects files that nothing refers to.

Every batch is a transaction of its own under the lease; what one sweep does not get done, the next does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from sqlmodel import Session, col, select

from edgewise_server.context import Context
from edgewise_server.federation.facts import OPEN_ROUNDS
from edgewise_server.models.federation import Round
from edgewise_server.services import blob_collection, retention
from edgewise_server.services.retention import DAY_S
from edgewise_server.uploads.store import UploadStore

STRAY_S: Final = DAY_S
"""Age at which a file that no row names is taken for what a crash has left."""

Do = Callable[[Callable[[Session], Any]], Any]
"""Runs a step in a transaction under the lease; None where it failed."""

log = logging.getLogger(__name__)


def sweep(context: Context, uploads: UploadStore, do: Do, now: float, stopping: Callable[[], bool]) -> dict[str, int]:
    """One sweep; returns how much of what was forgotten."""
    settings = context.settings
    forgotten: dict[str, int] = {}
    steps: list[tuple[str, Callable[[Session], int]]] = [
        (rule.name, partial(retention.sweep_one, rule=rule, settings=settings, now=now)) for rule in retention.RULES
    ]
    collect = partial(
        blob_collection.collect,
        store=context.blobs,
        now=now,
        grace_s=settings.blob_grace_days * DAY_S,
        kept_federations_since=now - settings.federation_days * DAY_S,
    )
    strays = partial(blob_collection.collect_strays, store=context.blobs, grace_s=STRAY_S)
    steps += [("blobs", collect), ("stray files", strays)]
    for name, step in steps:
        for _ in range(retention.MAX_BATCHES):
            number = 0 if stopping() else do(step) or 0
            forgotten[name] = forgotten.get(name, 0) + number
            if number < _batch_of(name):
                break
    do(partial(retention.close_stale_alerts, now=now))
    forgotten["uploads"] = _remove_uploads(uploads, do)
    told = {name: number for name, number in forgotten.items() if number}
    if told:
        log.info("forgotten: %s", ", ".join(f"{number} {name}" for name, number in told.items()))
    return told


def _batch_of(name: str) -> int:
    return blob_collection.BATCH if name in ("blobs", "stray files") else retention.BATCH_ROWS


def _remove_uploads(uploads: UploadStore, do: Do) -> int:
    """Remove updates of rounds that are over: their weights are aggregated, and they are personal."""
    folders = uploads.rounds()
    if not folders:
        return 0
    open_rounds = do(
        lambda session: list(session.exec(select(Round.id).where(col(Round.state).in_(OPEN_ROUNDS))).all())
    )
    if open_rounds is None:
        return 0
    over = [round_id for round_id in folders if round_id not in set(open_rounds)]
    for round_id in over:
        uploads.remove_round(round_id)
    return len(over)
