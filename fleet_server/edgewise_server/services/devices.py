"""Devices: finding them, and ending their membership in the fleet."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec
from edgewise_protocol import topics
from edgewise_protocol.facts import DeviceFacts
from sqlmodel import Session, col, select
from sqlmodel import delete as delete_rows
from sqlmodel.sql.expression import SelectOfScalar

from edgewise_server.errors import NotFoundError
from edgewise_server.groups.query import ENGINE, parse
from edgewise_server.models.assignments import Assignment
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device, Enrolment, Group, Membership, RevokedCertificate
from edgewise_server.services import outgoing

ALL: Final = "all"
"""The built-in group of every device."""
_RETAINED: Final = ("assignment", "status", "reported")


def find(session: Session, device_id: str) -> Device | None:
    """A device, or None."""
    return session.get(Device, device_id)


def get(session: Session, device_id: str) -> Device:
    """A device; raise `NotFoundError` if there is none."""
    device = session.get(Device, device_id)
    if device is None:
        raise NotFoundError(f"there is no device {device_id[:64]!r}")
    return device


def hold(session: Session, device: Device) -> None:
    """Read a device's row anew, and keep others from changing it until the transaction ends.

    Certificates are issued and revoked side by side: a revocation that did not see a renewal would leave its
    certificate out of the list.
    """
    session.flush()
    session.refresh(device, with_for_update=True)


def facts_of(device: Device) -> DeviceFacts:
    """What the device last said of itself."""
    return msgspec.convert(device.facts, DeviceFacts)


def facts_for_query(device: Device) -> dict[str, Any]:
    """A device's facts under the names of the query language."""
    facts = {key: value for key, value in device.facts.items() if key != "engines"}
    engines = {f"{ENGINE}{name}": version for name, version in device.facts.get("engines", {}).items()}
    own = {"id": device.id, "channel": device.channel, "online": device.online, "simulated": device.simulated}
    return facts | engines | own


def in_group(session: Session, group: str, *, with_revoked: bool = False) -> list[Device]:
    """The devices of a group, by id; `all` is every device.

    Raises:
        NotFoundError: there is no such group.
    """
    statement = select(Device).order_by(col(Device.id))
    if not with_revoked:
        statement = statement.where(col(Device.revoked_at).is_(None), col(Device.decommission_by).is_(None))
    if group == ALL:
        return list(session.exec(statement))
    found = session.get(Group, group)
    if found is None:
        raise NotFoundError(f"there is no group {group[:64]!r}")
    if found.query:
        matches = parse(found.query)
        return [device for device in session.exec(statement) if matches(facts_for_query(device))]
    return list(session.exec(statement.where(col(Device.id).in_(_members(group)))))


def page(
    session: Session, *, group: str = "", query: str = "", channel: str = "", after: str = "", limit: int
) -> tuple[list[Device], str | None]:
    """Up to `limit` devices by id, revoked ones included, and the id to go on after, if there are more.

    Raises:
        NotFoundError: there is no such group. QueryError: the query cannot be parsed.
    """
    statement = select(Device).where(Device.id > after).order_by(col(Device.id))
    tests = [parse(query)] if query else []
    if channel:
        statement = statement.where(Device.channel == channel)
    if group and group != ALL:
        found = session.get(Group, group)
        if found is None:
            raise NotFoundError(f"there is no group {group[:64]!r}")
        if found.query:
            tests.append(parse(found.query))
        else:
            statement = statement.where(col(Device.id).in_(_members(group)))
    chosen: list[Device] = []
    # Left before its end, PostgreSQL's cursor stays open until it is closed.
    with session.exec(statement.execution_options(yield_per=500)) as devices:
        for device in devices:
            if tests and not all(test(facts_for_query(device)) for test in tests):
                continue
            if len(chosen) == limit:
                return chosen, chosen[-1].id
            chosen.append(device)
    return chosen, None


def revoke(session: Session, device_id: str) -> Device:
    """Revoke a device's certificate and take its assignment from the broker. Repeating it changes nothing.

    Files by which somebody could still take its place are withdrawn: a new one is made where that is wanted.

    The caller renews the CRL (`edgewise_server.services.identity.renew_crl`).
    """
    device = get(session, device_id)
    hold(session, device)
    session.exec(
        delete_rows(Enrolment).where(
            col(Enrolment.name) == device.id, col(Enrolment.replaces), col(Enrolment.used_at).is_(None)
        )
    )
    if device.revoked_at is None:
        # Its last will is not taken in any more, so nothing else would say that it is gone.
        device.revoked_at, device.online = utc_now(), False
        session.add(device)
        _add_to_crl(session, device.id, device.certificate_serial, device.certificate_not_after)
        drop_next(session, device)
        outgoing.clear(session, topics.device(device.id, "assignment"))
    return device


def delete(session: Session, device_id: str) -> None:
    """Revoke a device and forget it."""
    device = revoke(session, device_id)
    for leaf in _RETAINED:
        outgoing.clear(session, topics.device(device.id, leaf))
    session.delete(device)


def drop_next(session: Session, device: Device) -> None:
    """Revoke the certificate of a renewal that was never seen in use, if there is one."""
    if device.next_serial and device.next_not_after is not None:
        _add_to_crl(session, device.id, device.next_serial, device.next_not_after)
    device.next_key_sha256, device.next_serial, device.next_not_after = "", "", None


def promote_next(session: Session, device: Device) -> None:
    """The renewed certificate is in use: the one before it is revoked."""
    if not device.next_serial or device.next_not_after is None:
        return
    _add_to_crl(session, device.id, device.certificate_serial, device.certificate_not_after)
    device.key_sha256, device.certificate_serial = device.next_key_sha256, device.next_serial
    device.certificate_not_after = device.next_not_after
    device.next_key_sha256, device.next_serial, device.next_not_after = "", "", None
    session.add(device)


def take_place(
    session: Session, device: Device, *, serial: str, not_after: datetime, key_sha256: str, facts: DeviceFacts
) -> None:
    """New hardware takes a device's place: its certificate is revoked; groups and assignment stay."""
    _add_to_crl(session, device.id, device.certificate_serial, device.certificate_not_after)
    drop_next(session, device)
    device.certificate_serial, device.certificate_not_after, device.key_sha256 = serial, not_after, key_sha256
    device.facts, device.simulated = msgspec.to_builtins(facts), facts.simulated
    device.revoked_at, device.decommission_by = None, None
    device.enrolled_at = utc_now()
    device.online, device.session_id, device.status_at, device.reported = False, "", None, None
    for leaf in ("status", "reported"):
        outgoing.clear(session, topics.device(device.id, leaf))
    session.add(device)


def decommission(session: Session, device_id: str, by: datetime) -> Device:
    """End a device's service: it is to run nothing, and is revoked once it says so, or at `by`.

    The caller assigns nothing to it, in the same transaction. Repeating it changes at most `by`.
    """
    device = get(session, device_id)
    if device.decommissioned_at is None:
        device.decommission_by = by
        session.add(device)
    return device


def finish_decommissions(session: Session, now: datetime, limit: int = 200) -> list[str]:
    """Revoke the devices whose decommissioning is due; returns their ids.

    The row stays, for the audit. The caller renews the CRL.
    """
    waiting = select(Device).where(col(Device.decommission_by).is_not(None), col(Device.decommissioned_at).is_(None))
    ended: list[str] = []
    for device in session.exec(waiting.order_by(col(Device.id)).limit(limit)).all():
        if device.decommission_by is None or (now < device.decommission_by and not runs_nothing(device)):
            continue
        revoke(session, device.id)
        for leaf in _RETAINED:
            outgoing.clear(session, topics.device(device.id, leaf))
        row = session.get(Assignment, device.id)
        if row is not None:
            session.delete(row)
        device.decommissioned_at, device.online = now, False
        session.add(device)
        ended.append(device.id)
    return ended


def runs_nothing(device: Device) -> bool:
    """Whether the device has reported that it took in the newest assignment and serves no model."""
    reported = device.reported or {}
    if reported.get("assignment_version", -1) < device.assignment_version:
        return False
    return not any(report.get("active_version", 0) for report in reported.get("models", []))


def _members(group: str) -> SelectOfScalar[str]:
    return select(Membership.device_id).where(Membership.group_name == group)


def _add_to_crl(session: Session, device_id: str, serial: str, not_after: datetime) -> None:
    if session.get(RevokedCertificate, serial) is None:
        session.add(RevokedCertificate(serial=serial, device_id=device_id, not_after=not_after))
