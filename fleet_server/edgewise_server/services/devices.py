"""Devices: finding them, and ending their membership in the fleet."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from edgewise_protocol import topics
from edgewise_protocol.facts import DeviceFacts
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from edgewise_server.errors import NotFoundError
from edgewise_server.groups.query import ENGINE, parse
from edgewise_server.models.base import utc_now
from edgewise_server.models.devices import Device, Group, Membership, RevokedCertificate
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
        statement = statement.where(col(Device.revoked_at).is_(None))
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
    for device in session.exec(statement.execution_options(yield_per=500)):
        if tests and not all(test(facts_for_query(device)) for test in tests):
            continue
        if len(chosen) == limit:
            return chosen, chosen[-1].id
        chosen.append(device)
    return chosen, None


def revoke(session: Session, device_id: str) -> Device:
    """Revoke a device's certificate and take its assignment from the broker. Repeating it changes nothing.

    The caller renews the CRL (`edgewise_server.services.identity.renew_crl`).
    """
    device = get(session, device_id)
    if device.revoked_at is None:
        device.revoked_at = utc_now()
        session.add(device)
        _add_to_crl(session, device)
        outgoing.clear(session, topics.device(device.id, "assignment"))
    return device


def delete(session: Session, device_id: str) -> None:
    """Revoke a device and forget it."""
    device = revoke(session, device_id)
    for leaf in _RETAINED:
        outgoing.clear(session, topics.device(device.id, leaf))
    session.delete(device)


def _members(group: str) -> SelectOfScalar[str]:
    return select(Membership.device_id).where(Membership.group_name == group)


def _add_to_crl(session: Session, device: Device) -> None:
    if session.get(RevokedCertificate, device.certificate_serial) is None:
        session.add(
            RevokedCertificate(
                serial=device.certificate_serial, device_id=device.id, not_after=device.certificate_not_after
            )
        )
