"""Groups: devices chosen by hand or by a query. A group only narrows a channel."""

from __future__ import annotations

from edgewise_protocol.names import check_name
from sqlalchemy import func
from sqlmodel import Session, col, select

from edgewise_server.errors import ConflictError, NotFoundError
from edgewise_server.groups.query import parse
from edgewise_server.models.devices import Group, Membership
from edgewise_server.services import devices


def create(session: Session, name: str, query: str = "") -> Group:
    """Make a group; with a query it follows the devices' facts.

    Raises:
        ConflictError: there is one of this name. QueryError: the query cannot be parsed.
    """
    check_name(name, "group")
    if name == devices.ALL or session.get(Group, name) is not None:
        raise ConflictError(f"there is a group {name!r} already")
    if query:
        parse(query)
    group = Group(name=name, query=query)
    session.add(group)
    session.flush()
    return group


def get(session: Session, name: str) -> Group:
    """A group; raise `NotFoundError` if there is none. `all` is built in."""
    if name == devices.ALL:
        return Group(name=devices.ALL)
    group = session.get(Group, name)
    if group is None:
        raise NotFoundError(f"there is no group {name[:64]!r}")
    return group


def all_groups(session: Session) -> list[Group]:
    """All groups by name, the built-in one first."""
    return [Group(name=devices.ALL), *session.exec(select(Group).order_by(col(Group.name)))]


def add_device(session: Session, name: str, device_id: str) -> None:
    """Put a device into a group by hand; repeating it changes nothing.

    Raises:
        ConflictError: the group is made by a query.
    """
    _by_hand(session, name)
    devices.get(session, device_id)
    if session.get(Membership, (name, device_id)) is None:
        session.add(Membership(group_name=name, device_id=device_id))
        session.flush()


def remove_device(session: Session, name: str, device_id: str) -> None:
    """Take a device out of a group by hand; repeating it changes nothing."""
    _by_hand(session, name)
    membership = session.get(Membership, (name, device_id))
    if membership is not None:
        session.delete(membership)


def delete(session: Session, name: str) -> None:
    """Remove a group; its devices stay."""
    if name == devices.ALL:
        raise ConflictError("the group 'all' is built in")
    session.delete(get(session, name))


def of_device(session: Session, device_id: str) -> list[str]:
    """The groups that hold a device by hand."""
    statement = select(Membership.group_name).where(Membership.device_id == device_id)
    return sorted(session.exec(statement))


def size(session: Session, group: Group) -> int:
    """Devices in a group, revoked ones not counted."""
    return len(devices.in_group(session, group.name))


def number(session: Session) -> int:
    """Groups that somebody made."""
    return int(session.exec(select(func.count()).select_from(Group)).one())


def _by_hand(session: Session, name: str) -> Group:
    group = get(session, name)
    if group.query or group.name == devices.ALL:
        raise ConflictError(f"the group {name!r} is made by a rule; it takes no devices by hand")
    return group
