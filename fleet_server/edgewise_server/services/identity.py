"""How a device comes into the fleet, and how its certificate ends: enrolments, leaves, CRL."""

from __future__ import annotations

import hmac
from datetime import datetime, timedelta
from typing import Final

import msgspec
from edgewise_profiles import catalogue
from edgewise_protocol.bounds import MAX_CONTROL_BYTES
from edgewise_protocol.enrolment import BrokerAddress, EnrolmentFile, EnrolRequest, EnrolResponse
from edgewise_protocol.facts import DeviceFacts
from edgewise_protocol.names import check_name
from edgewise_protocol.targets import ROUNDS
from sqlmodel import Session, col, delete, select, update

from edgewise_server.broker.mosquitto import SERVER_USER
from edgewise_server.db import hold_lock
from edgewise_server.errors import (
    ConflictError,
    EnrolmentError,
    EnrolmentExpiredError,
    InvalidError,
    NotFoundError,
    NoTrustError,
    UnknownBoardError,
)
from edgewise_server.models.assignments import Assignment
from edgewise_server.models.base import new_id, utc_now
from edgewise_server.models.devices import Device, Enrolment, Group, Membership, RevokedCertificate
from edgewise_server.models.trust import FleetCa
from edgewise_server.pki.authority import Authority
from edgewise_server.services import clones, devices, groups
from edgewise_server.services.tokens import hash_secret, new_secret
from edgewise_server.settings import Settings
from edgewise_server.trust.online import is_due

ENROL_PREFIX: Final = "ewe_"
MAX_GROUPS: Final = 32
_RESERVED: Final = (ROUNDS, "dev")
"""First parts of target paths that are not channels."""


def fleet_ca(session: Session) -> FleetCa:
    """The fleet's certificates; raise `NoTrustError` before the ceremony."""
    found = session.get(FleetCa, 1)
    if found is None:
        raise NoTrustError("no trust is installed yet: run the key ceremony and upload it")
    return found


def create_enrolment(
    session: Session,
    settings: Settings,
    root_json: str,
    *,
    channel: str,
    group_names: list[str],
    name: str,
    actor: str,
    expires_in_s: float | None,
    replaces: bool = False,
) -> tuple[Enrolment, EnrolmentFile]:
    """Make an enrolment file, whose one-time token is not kept.

    Args:
        root_json: the trusted root metadata, with which a device starts.
        replaces: the device `name` exists, and whoever uses the file takes its place.

    Raises:
        NoTrustError: before the ceremony. ConflictError: the name is taken.
        NotFoundError: a group does not exist. InvalidError, TopicError: a name is not acceptable.
    """
    if check_name(channel, "channel") in _RESERVED:
        raise InvalidError(f"{channel!r} is reserved and cannot be a channel")
    if len(group_names) > MAX_GROUPS:
        raise InvalidError(f"a device may be enrolled into at most {MAX_GROUPS} groups")
    wanted = sorted({g for g in group_names if g != devices.ALL})
    for group in wanted:
        if groups.get(session, group).query:
            raise InvalidError(f"the group {group!r} is made by a query; it takes no devices by hand")
    if name == SERVER_USER:
        raise InvalidError(f"{name!r} is the server's own name at the broker and cannot be a device's")
    if name and not replaces and devices.find(session, check_name(name, "device id")) is not None:
        raise ConflictError(
            f"there is a device {name!r} already: take another name, or give its place away with "
            f"`edgewise device replace {name}`"
        )
    secret = new_secret(ENROL_PREFIX)
    enrolment = Enrolment(
        id=new_id("enr"),
        token_sha256=hash_secret(secret),
        channel=channel,
        groups=wanted,
        name=name,
        created_by=actor,
        expires_at=utc_now() + timedelta(seconds=expires_in_s or settings.enrolment_s),
        replaces=replaces,
    )
    file = EnrolmentFile(
        server_url=settings.base_url,
        broker=broker_address(settings),
        fleet_ca=fleet_ca(session).root_pem,
        tuf_root=root_json,
        token=secret,
        channel=channel,
        name=name,
    )
    session.add(enrolment)
    session.flush()
    return enrolment, file


def broker_address(settings: Settings) -> BrokerAddress:
    """Where devices reach the broker."""
    over_websocket = settings.broker_public_transport == "websockets"
    return BrokerAddress(
        host=settings.broker_public_host or settings.broker_host,
        port=settings.broker_public_port or (settings.websocket_port if over_websocket else 0) or settings.broker_port,
        tls=settings.broker_tls,
        transport=settings.broker_public_transport,
    )


def replace_device(
    session: Session, settings: Settings, root_json: str, device_id: str, *, actor: str, expires_in_s: float | None
) -> tuple[Enrolment, EnrolmentFile]:
    """An enrolment file by which new hardware takes a device's place. Until it is used, nothing changes.

    Raises:
        NotFoundError: there is no such device. ConflictError: it is decommissioned.
    """
    device = devices.get(session, device_id)
    if device.decommission_by is not None:
        raise ConflictError(f"{device_id} is decommissioned; enrol the new hardware as another device")
    return create_enrolment(
        session,
        settings,
        root_json,
        channel=device.channel,
        group_names=[],
        name=device.id,
        actor=actor,
        expires_in_s=expires_in_s,
        replaces=True,
    )


def decode_request(data: bytes) -> EnrolRequest:
    """Parse a device's request; raise `InvalidError` if it is malformed."""
    if len(data) > MAX_CONTROL_BYTES:
        raise InvalidError(f"the request has more than {MAX_CONTROL_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=EnrolRequest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidError(f"this is not an enrolment request: {error}") from error


def enrol(
    session: Session, authority: Authority, request: EnrolRequest, *, now: datetime, certificate_days: float
) -> EnrolResponse:
    """Take a device in: spend the token, issue a certificate, make its row.

    Raises:
        EnrolmentError: the token is unknown, used or expired, or its device name was taken meanwhile.
        CsrError, CertificateError: no certificate can be issued; the token stays unspent.
    """
    digest = hash_secret(request.token)
    enrolment = session.exec(select(Enrolment).where(Enrolment.token_sha256 == digest)).first()
    if enrolment is None or not hmac.compare_digest(enrolment.token_sha256, digest):
        raise EnrolmentError("the enrolment token is not known")
    if enrolment.used_at is not None:
        raise EnrolmentError("the enrolment token has been used")
    if enrolment.expires_at <= now:
        raise EnrolmentExpiredError(
            f"the enrolment token expired at {enrolment.expires_at.isoformat()}: ask for a new enrolment file"
        )
    check_board(request.facts)
    device_id = enrolment.name or new_id("dev")
    replaced = devices.find(session, device_id)
    if replaced is None and enrolment.replaces:
        raise EnrolmentError(f"{device_id} was removed meanwhile; ask for the enrolment file of another device")
    if replaced is not None:
        devices.hold(session, replaced)
    if replaced is not None and not enrolment.replaces:
        raise EnrolmentError(
            f"there is a device {device_id!r} already; its place is given away by `edgewise device replace {device_id}`"
        )
    if replaced is not None and replaced.decommission_by is not None:
        raise EnrolmentError(f"{device_id} was decommissioned; ask for the enrolment file of another device")
    issued = authority.issue(
        request.csr_pem,
        fleet_ca(session).intermediate_pem,
        device_id=device_id,
        channel=enrolment.channel,
        now=now,
        days=certificate_days,
    )
    # two requests with one token may both have come here: only one changes the row
    spent = session.exec(
        update(Enrolment)
        .where(col(Enrolment.id) == enrolment.id, col(Enrolment.used_at).is_(None))
        .values(used_at=now, device_id=device_id)
        .execution_options(synchronize_session=False)
    )
    if spent.rowcount != 1:
        raise EnrolmentError("the enrolment token has been used")
    response = EnrolResponse(device_id=device_id, channel=enrolment.channel, certificate_pem=issued.chain_pem)
    if replaced is not None:
        devices.take_place(
            session,
            replaced,
            serial=issued.serial,
            not_after=issued.not_after,
            key_sha256=issued.key_sha256,
            facts=request.facts,
        )
        clones.settle(session, replaced, now)
        _sign_again(session, device_id)
        return response
    session.add(
        Device(
            id=device_id,
            channel=enrolment.channel,
            certificate_serial=issued.serial,
            certificate_not_after=issued.not_after,
            key_sha256=issued.key_sha256,
            facts=msgspec.to_builtins(request.facts),
            simulated=request.facts.simulated,
        )
    )
    session.flush()
    for group in enrolment.groups:
        # a group that was removed meanwhile must not keep the device out
        if session.get(Group, group) is not None:
            session.add(Membership(group_name=group, device_id=device_id))
    session.flush()
    return response


def check_board(facts: DeviceFacts) -> None:
    """Refuse a device that stands in for a board which no profile describes, as a mistyped name would.

    Real hardware is not held against the catalogue: what fits it, the bundles say.

    Raises:
        UnknownBoardError: the message names the known profiles.
    """
    if facts.simulated and not set(facts.compatible) & set(catalogue.names()):
        raise UnknownBoardError(
            f"there is no profile {', '.join(facts.compatible)[:80]!r} to stand in for; there are "
            f"{', '.join(catalogue.names())}"
        )


def _sign_again(session: Session, device_id: str) -> None:
    """Have the orchestrator issue the device's assignment anew: a revocation took it from the broker."""
    session.exec(
        update(Assignment)
        .where(col(Assignment.device_id) == device_id)
        .values(expires_at=0.0)
        .execution_options(synchronize_session=False)
    )


def all_enrolments(session: Session) -> list[Enrolment]:
    """All enrolments, newest first."""
    return list(session.exec(select(Enrolment).order_by(col(Enrolment.created_at).desc())))


def delete_enrolment(session: Session, enrolment_id: str) -> Enrolment:
    """Withdraw an enrolment; a device that has used it stays."""
    enrolment = session.get(Enrolment, enrolment_id)
    if enrolment is None:
        raise NotFoundError(f"there is no enrolment {enrolment_id[:64]!r}")
    session.delete(enrolment)
    return enrolment


def withdraw_open(session: Session) -> int:
    """Withdraw every enrolment that no device has used; returns how many."""
    return session.exec(delete(Enrolment).where(col(Enrolment.used_at).is_(None))).rowcount


def renew_crl(session: Session, authority: Authority, *, now: datetime, days: float, force: bool) -> str | None:
    """Sign a new CRL if it is due, lacks a revocation, or `force`; returns it, or None when the old one stands."""
    hold_lock(session, "crl")
    ca = session.get(FleetCa, 1)
    if ca is None:
        return None
    if not force and ca.crl_expires_at is not None and not is_due(ca.crl_expires_at, days, now):
        signed_at = ca.crl_expires_at - timedelta(days=days)
        newer = select(RevokedCertificate.serial).where(col(RevokedCertificate.revoked_at) >= signed_at)
        if session.exec(newer.limit(1)).first() is None:
            return None
    listed = session.exec(select(RevokedCertificate).where(col(RevokedCertificate.not_after) > now))
    revoked = [(entry.serial, entry.revoked_at) for entry in listed]
    ca.crl_number += 1
    ca.crl_pem, ca.crl_expires_at = authority.revocation_list(
        ca.intermediate_pem, revoked, number=ca.crl_number, now=now, days=days
    )
    session.add(ca)
    return ca.crl_pem
