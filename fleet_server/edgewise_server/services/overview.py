"""Numbers for the status page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, func
from sqlmodel import Session, col, select

from edgewise_server.models.base import Table
from edgewise_server.models.blobs import Blob
from edgewise_server.models.devices import Device, Enrolment, Group
from edgewise_server.models.registry import ModelVersion, Target
from edgewise_server.services.blobs import used_bytes
from edgewise_server.services.metadata import ONLINE

EXPIRY_WARNING: Final = timedelta(days=14)


def counts(session: Session, now: datetime) -> dict[str, int]:
    """How much there is of everything; revoked devices are not counted."""
    here = col(Device.revoked_at).is_(None)
    models = session.exec(select(func.count(func.distinct(ModelVersion.model)))).one()
    return {
        "devices": _count(session, Device, here),
        "online": _count(session, Device, here, col(Device.online)),
        "groups": _count(session, Group),
        "models": int(models),
        "bundles": _count(session, Target, col(Target.trusted), col(Target.kind) == "inference"),
        "blobs": _count(session, Blob),
        "blob_bytes": used_bytes(session),
        "enrolments_open": _count(
            session, Enrolment, col(Enrolment.used_at).is_(None), col(Enrolment.expires_at) > now
        ),
    }


def warnings(states: Mapping[str, tuple[int, datetime]], now: datetime) -> list[str]:
    """What an operator must do soon: offline signatures that expire, which this server cannot renew."""
    found = []
    for role, (_, expires) in states.items():
        left = expires - now
        if role not in ONLINE and left < EXPIRY_WARNING:
            when = f"expire in {left.days} days" if left.days >= 0 else "have expired"
            found.append(f"the {role} metadata {when}: sign them again")
    return found


def _count(session: Session, table: type[Table], *where: ColumnElement[bool] | Any) -> int:
    return int(session.exec(select(func.count()).select_from(table).where(*where)).one())
