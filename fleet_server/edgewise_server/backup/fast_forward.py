"""What a restored server changes before it speaks: no version that a device has seen since the backup comes again.

Devices refuse whatever is older than what they have accepted. A backup is older, so that all versions that the
server itself gives leap ahead, and the broker is told everything anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from edgewise_protocol import topics
from sqlmodel import Session, col, delete, select, update

from edgewise_server.context import Context
from edgewise_server.db import Database
from edgewise_server.errors import ServerError
from edgewise_server.federation.facts import OPEN_ROUNDS
from edgewise_server.models.assignments import Assignment
from edgewise_server.models.base import new_id
from edgewise_server.models.devices import Device, DirectorCounter
from edgewise_server.models.federation import Round, RoundClient
from edgewise_server.models.leases import Lease
from edgewise_server.models.outgoing import BrokerState
from edgewise_server.models.trust import FleetCa
from edgewise_server.services import assignments, identity, metadata, outgoing
from edgewise_server.uploads.store import UploadStore

LEAP: Final = 10_000
"""How far versions leap: more than a server gives while a backup ages, and far below what a device takes at once."""
BATCH: Final = 200


def forward_counters(database: Database, uploads: UploadStore) -> None:
    """All that needs no key: the counters leap, nobody holds a lease, and the broker is to be filled anew.

    Enrolment files that wait are withdrawn: since the backup they may have been used, or withdrawn for a reason.
    """
    with database.session() as session:
        session.exec(update(DirectorCounter).values(version=DirectorCounter.version + LEAP))
        session.exec(update(FleetCa).values(crl_number=FleetCa.crl_number + LEAP))
        identity.withdraw_open(session)
        session.exec(delete(Lease))
        session.exec(delete(BrokerState))
        session.add(BrokerState(id=1, instance=new_id("fleet")))
        outgoing.republish_after(session, None)
        _give_up_lost_uploads(session, uploads)


def sign_anew(context: Context, now: datetime, progress: Callable[[str], None]) -> int:
    """Sign snapshot, timestamp, CRL and every assignment with versions that leap; returns the number of assignments.

    Without an installed trust there is nothing to sign.
    """
    with context.database.session(read_only=True) as session:
        if metadata.newest(session, "root") is None:
            return 0
        device_ids = list(session.exec(select(Assignment.device_id).order_by(col(Assignment.device_id))))
    context.repository.leap(LEAP, now)
    context.refresh_crl(force=True)
    for first in range(0, len(device_ids), BATCH):
        with context.database.session() as session:
            for device_id in device_ids[first : first + BATCH]:
                _assign_anew(session, context, device_id)
        progress(f"signed {min(first + BATCH, len(device_ids))} of {len(device_ids)} assignments")
    return len(device_ids)


def _assign_anew(session: Session, context: Context, device_id: str) -> None:
    row, device = assignments.current(session, device_id), session.get(Device, device_id)
    if row is None or device is None:
        return
    bundles = assignments.bundles_of(row).values()
    try:
        with session.begin_nested():
            assignments.assign(session, context, device, bundles, row.deployment, row.confirm_within_s)
    except ServerError:
        # Revoked, or its bundle is no longer signed. What it runs stays; the old word would look like a rollback.
        outgoing.clear(session, topics.device(device_id, "assignment"))


def _give_up_lost_uploads(session: Session, uploads: UploadStore) -> None:
    """Updates whose bytes did not come along cannot be aggregated; their devices take part in the next round."""
    statement = (
        select(RoundClient)
        .join(Round, col(Round.id) == col(RoundClient.round_id))
        .where(col(Round.state).in_(sorted(OPEN_ROUNDS)), col(RoundClient.chunks_through) > 0)
    )
    for client in session.exec(statement).all():
        if (
            client.state in ("waiting", "uploading", "stored")
            and not uploads.path(client.round_id, client.device_id).is_file()
        ):
            client.state, client.error, client.changed_at = (
                "refused",
                "update-lost: it was not in the backup",
                time.time(),
            )
            session.add(client)
