"""What the database forgets, and when: one table of rules, applied in small batches.

Every table that grows with time has a row here or is named below as one that does not: identities, groups, targets,
trusted metadata and counters grow with what people do, and are kept; `outgoing` forgets its own tombstones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, exists, func, tuple_
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, delete, select, update

from edgewise_server.federation.facts import OPEN_ROUNDS
from edgewise_server.models.access import AuditEntry
from edgewise_server.models.devices import Enrolment, RevokedCertificate
from edgewise_server.models.federation import Federation, Round, RoundClient
from edgewise_server.models.jobs import Job
from edgewise_server.models.rollouts import Rollout, RolloutDevice, RolloutHistory
from edgewise_server.models.telemetry import Alert, DriftTrack, DriftWindow, ModelWindow, StoredMessage, StreamCursor
from edgewise_server.services import rollouts
from edgewise_server.services.monitoring import DRIFT
from edgewise_server.settings import Settings

DAY_S: Final = 24 * 3600.0
BATCH_ROWS: Final = 2_000
"""Rows that one transaction deletes: other writers wait for no longer than that takes."""
MAX_BATCHES: Final = 100
"""Batches of one rule in one sweep; what is left waits for the next."""

Condition = Callable[[Settings, float], ColumnElement[bool]]


@dataclass(frozen=True)
class Rule:
    """Rows of `table` that meet `old(settings, now)` are deleted."""

    name: str
    table: type[Any]
    old: Condition


def sweep_one(session: Session, rule: Rule, settings: Settings, now: float) -> int:
    """Delete one batch; returns how many rows."""
    key = list(rule.table.__table__.primary_key.columns)
    chosen = select(*key).where(rule.old(settings, now)).limit(BATCH_ROWS)
    which = key[0].in_(chosen) if len(key) == 1 else tuple_(*key).in_(chosen)
    found = session.exec(delete(rule.table).where(which).execution_options(synchronize_session=False))
    return int(found.rowcount)


def close_stale_alerts(session: Session, now: float) -> int:
    """Close alerts of drift whose windows are forgotten: no window will come that closes them."""
    tracked = exists().where(
        col(DriftTrack.device_id) == col(Alert.device_id),
        col(DriftTrack.model) == col(Alert.model),
        col(DriftTrack.version) == col(Alert.version),
    )
    found = session.exec(
        update(Alert)
        .where(col(Alert.kind) == DRIFT, col(Alert.closed_at).is_(None), ~tracked)
        .values(closed_at=now)
        .execution_options(synchronize_session=False)
    )
    return int(found.rowcount)


def _received(table: type[Any]) -> Condition:
    return lambda settings, now: col(table.received_at) < now - settings.message_days * DAY_S


def _drift_tracks(_: Settings, __: float) -> ColumnElement[bool]:
    """Of versions that no kept window is of."""
    return ~exists().where(
        col(DriftWindow.device_id) == col(DriftTrack.device_id),
        col(DriftWindow.model) == col(DriftTrack.model),
        col(DriftWindow.version) == col(DriftTrack.version),
    )


def _alerts(settings: Settings, now: float) -> ColumnElement[bool]:
    return col(Alert.closed_at) < now - settings.alert_days * DAY_S


def _cursors(settings: Settings, now: float) -> ColumnElement[bool]:
    """Of streams that nothing came on for so long: an outbox that was made anew has a new stream."""
    return col(StreamCursor.changed_at) < now - settings.stream_days * DAY_S


def _audit(settings: Settings, now: float) -> ColumnElement[bool]:
    return col(AuditEntry.at) < _time(now - settings.audit_days * DAY_S)


def _enrolments(settings: Settings, now: float) -> ColumnElement[bool]:
    """Used or expired, long ago."""
    ended = func.coalesce(col(Enrolment.used_at), col(Enrolment.expires_at))
    return ended < _time(now - settings.enrolment_days * DAY_S)


def _revoked(_: Settings, now: float) -> ColumnElement[bool]:
    """Expired for a day: no revocation list needs to name them."""
    return col(RevokedCertificate.not_after) < _time(now - DAY_S)


def _jobs(settings: Settings, now: float) -> ColumnElement[bool]:
    """Ended, and of no federation or round that still looks at them."""
    waited_for = exists().where(
        col(Federation.promote_job) == col(Job.id), col(Federation.status).in_(("running", "promoting"))
    )
    signing = exists().where(col(Round.job_id) == col(Job.id), col(Round.state).in_(sorted(OPEN_ROUNDS)))
    return and_(col(Job.finished_at) < now - settings.job_days * DAY_S, ~waited_for, ~signing)


def _over(settings: Settings, now: float) -> ColumnElement[bool]:
    """Of rollouts that ended long ago and take nobody in any more.

    The newest of a model and group takes late joiners in, however old it is.
    """
    newest = (
        select(func.max(col(Rollout.number)))
        .where(col(Rollout.status).in_(rollouts.LIVE))
        .group_by(col(Rollout.model), col(Rollout.group))
    )
    return and_(
        col(Rollout.status).in_(("completed", "aborted")),
        col(Rollout.finished_at) < now - settings.rollout_days * DAY_S,
        col(Rollout.number).not_in(newest),
    )


def _rollout_devices(settings: Settings, now: float) -> ColumnElement[bool]:
    """Of such rollouts, where a newer rollout of the model has exposed the device since, and nothing is to be reverted.

    A device's newest row stays: it says which rollout holds the device.
    """
    newer_row, newer, own = aliased(RolloutDevice), aliased(Rollout), aliased(Rollout)
    followed = exists().where(
        col(newer_row.device_id) == col(RolloutDevice.device_id),
        col(newer.id) == col(newer_row.rollout_id),
        col(own.id) == col(RolloutDevice.rollout_id),
        col(newer.model) == col(own.model),
        col(newer.number) > col(own.number),
    )
    ended = select(Rollout.id).where(_over(settings, now))
    to_revert = and_(
        col(RolloutDevice.reverted_at).is_(None),
        col(RolloutDevice.rollout_id).in_(select(Rollout.id).where(Rollout.status == "aborted")),
    )
    return and_(col(RolloutDevice.rollout_id).in_(ended), followed, ~to_revert)


def _rollout_history(settings: Settings, now: float) -> ColumnElement[bool]:
    return col(RolloutHistory.rollout_id).in_(select(Rollout.id).where(_over(settings, now)))


def _round_clients(settings: Settings, now: float) -> ColumnElement[bool]:
    """Of federations that ended long ago."""
    ended = (
        select(Round.id)
        .join(Federation, col(Federation.id) == col(Round.federation_id))
        .where(col(Federation.finished_at) < now - settings.federation_days * DAY_S)
    )
    return col(RoundClient.round_id).in_(ended)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(max(0.0, seconds), UTC)


RULES: Final = (
    Rule("messages", StoredMessage, _received(StoredMessage)),
    Rule("counters", ModelWindow, _received(ModelWindow)),
    Rule("drift windows", DriftWindow, _received(DriftWindow)),
    Rule("drift tracks", DriftTrack, _drift_tracks),
    Rule("alerts", Alert, _alerts),
    Rule("stream cursors", StreamCursor, _cursors),
    Rule("audit", AuditEntry, _audit),
    Rule("enrolments", Enrolment, _enrolments),
    Rule("revoked certificates", RevokedCertificate, _revoked),
    Rule("jobs", Job, _jobs),
    Rule("rollout devices", RolloutDevice, _rollout_devices),
    Rule("rollout history", RolloutHistory, _rollout_history),
    Rule("round clients", RoundClient, _round_clients),
)
