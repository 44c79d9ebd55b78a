"""Which devices are known, whether they are there, and what they say that they run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec
from edgewise_protocol.messages import Reported, Status
from sqlmodel import Session, col, or_, select, update

from edgewise_server.models.devices import Device

TOUCH_S: Final = 1.0
"""Grain of `last_seen_at`: a device that sends more often costs one write in this time."""


def known_ids(session: Session, ids: Iterable[str]) -> set[str]:
    """Those among `ids` that are enrolled and not revoked."""
    wanted = list(set(ids))
    return set(session.exec(select(Device.id).where(col(Device.id).in_(wanted), col(Device.revoked_at).is_(None))))


def load(session: Session, ids: Collection[str]) -> dict[str, Device]:
    """The rows of devices, by id."""
    if not ids:
        return {}
    found = session.exec(select(Device).where(col(Device.id).in_(list(ids)))).all()
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


def touch(session: Session, ids: Collection[str], now: float) -> None:
    """Devices were heard of."""
    if ids:
        seen = col(Device.last_seen_at)
        session.exec(
            update(Device)
            .where(col(Device.id).in_(list(ids)), or_(seen.is_(None), seen <= _time(now - TOUCH_S)))
            .values(last_seen_at=_time(now))
            .execution_options(synchronize_session=False)
        )


def _time(seconds: float) -> datetime:
    """A time that any database can hold, whatever the device's clock says."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), 4e9), UTC)
