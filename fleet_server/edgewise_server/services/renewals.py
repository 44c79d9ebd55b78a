"""Renewal of device certificates by proof of possession of the registered key.

A certificate is not enough: a stolen intermediate can mint one for any id, but not for the key
that the server registered at enrolment. The nonce is bound to the device's present
certificates, so a recorded request is worthless once it has had its effect; and it is
sealed, not stored, so that asking for one costs the database nothing.
"""

from __future__ import annotations

import base64
import hmac
import logging
import secrets
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from edgewise_protocol.bounds import MAX_CONTROL_BYTES
from edgewise_protocol.messages import Status
from edgewise_protocol.renewal import NonceRequest, NonceResponse, RenewRequest, RenewResponse, signed_bytes
from sqlmodel import Session

from edgewise_server.errors import (
    DeviceDecommissionedError,
    DeviceKeyUnknownError,
    DeviceRevokedError,
    InvalidError,
    RenewalNonceError,
    RenewalTooLateError,
)
from edgewise_server.models.devices import Device
from edgewise_server.pki.authority import Authority, spki
from edgewise_server.services import devices, identity
from edgewise_server.settings import Settings

NONCE_S: Final = 300
_PURPOSE: Final = b"edgewise renewal nonce"
_STAMP_BYTES: Final = 8
_RANDOM_BYTES: Final = 12

T = TypeVar("T")
log = logging.getLogger(__name__)


def decode_request(data: bytes, kind: type[T]) -> T:
    """Parse a device's request; raise `InvalidError` if it is malformed."""
    if len(data) > MAX_CONTROL_BYTES:
        raise InvalidError(f"the request has more than {MAX_CONTROL_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidError(f"this is not a renewal request: {error}") from error


def nonce(session: Session, authority: Authority, request: NonceRequest, *, now: datetime) -> NonceResponse:
    """A nonce for one renewal of one device.

    An unknown device gets one too, which leads nowhere: who is in the fleet is nobody's business.

    Raises:
        NoTrustError: before the ceremony.
    """
    stamp = int(now.timestamp()).to_bytes(_STAMP_BYTES, "big")
    fresh = stamp + secrets.token_bytes(_RANDOM_BYTES)
    device = devices.find(session, request.device_id)
    sealed = fresh + _seal(session, authority, fresh, request.device_id, device)
    return NonceResponse(nonce=base64.urlsafe_b64encode(sealed).decode().rstrip("="), expires_in_s=NONCE_S)


def renew(
    session: Session, authority: Authority, settings: Settings, request: RenewRequest, *, now: datetime
) -> RenewResponse:
    """Issue a certificate for a new key. The old one keeps counting until the new one is seen in use.

    Raises:
        RenewalNonceError: the nonce is old, of another device, or was used.
        DeviceKeyUnknownError: the proof is not by the device's registered key, or there is no such device. Nobody who
            holds no key is told which: the answers would list the fleet.
        DeviceRevokedError, DeviceDecommissionedError, RenewalTooLateError: the device gets no certificate any more.
        CsrError, CertificateError: no certificate can be issued.
    """
    device = session.get(Device, request.device_id, with_for_update=True, populate_existing=True)
    _check_nonce(session, authority, request, device, now)
    device = _check_proof(request, device)
    _check_standing(device, settings, now)
    ca = identity.fleet_ca(session)
    issued = authority.issue(
        request.csr_pem,
        ca.intermediate_pem,
        device_id=device.id,
        channel=device.channel,
        now=now,
        days=settings.certificate_days,
    )
    # an answer that was lost left a certificate that nobody uses
    devices.drop_next(session, device)
    device.next_key_sha256, device.next_serial = issued.key_sha256, issued.serial
    device.next_not_after = issued.not_after
    session.add(device)
    session.flush()
    return RenewResponse(
        device_id=device.id,
        channel=device.channel,
        certificate_pem=issued.chain_pem,
        fleet_ca=ca.root_pem,
        broker=identity.broker_address(settings),
        server_url=settings.base_url,
    )


def confirm(session: Session, device: Device, status: Status) -> bool:
    """Where a birth uses the renewed certificate, the one before it is revoked; returns whether."""
    if not status.online or not device.next_serial or status.certificate_serial != device.next_serial:
        return False
    # a renewal or a revocation may have come between: what was read before it does not decide
    devices.hold(session, device)
    if status.certificate_serial != device.next_serial:
        return False
    devices.promote_next(session, device)
    return True


def _seal(session: Session, authority: Authority, fresh: bytes, device_id: str, device: Device | None) -> bytes:
    key = authority.secret(identity.fleet_ca(session).intermediate_pem, _PURPOSE)
    present = f"{device.certificate_serial}/{device.next_serial}" if device is not None else ""
    return hmac.digest(key, fresh + f"{device_id}/{present}".encode(), "sha256")


def _check_nonce(
    session: Session, authority: Authority, request: RenewRequest, device: Device | None, now: datetime
) -> None:
    try:
        sealed = base64.urlsafe_b64decode(request.nonce + "=" * (-len(request.nonce) % 4))
    except ValueError as error:
        raise RenewalNonceError("the nonce is not one of this server's") from error
    fresh, seal = sealed[: _STAMP_BYTES + _RANDOM_BYTES], sealed[_STAMP_BYTES + _RANDOM_BYTES :]
    if not hmac.compare_digest(seal, _seal(session, authority, fresh, request.device_id, device)):
        raise RenewalNonceError("the nonce was used, or is not for this device: ask for a new one")
    age = int(now.timestamp()) - int.from_bytes(fresh[:_STAMP_BYTES], "big")
    if not -NONCE_S <= age <= NONCE_S:
        raise RenewalNonceError(f"the nonce is older than {NONCE_S} s: ask for a new one")


def _check_proof(request: RenewRequest, device: Device | None) -> Device:
    """The device, if the request is signed by its registered key."""
    try:
        key = load_pem_public_key(request.public_key_pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidError("the public key is not PEM") from error
    registered = {device.key_sha256, device.next_key_sha256} - {""} if device is not None else set()
    if device is None or sha256(spki(key)).hexdigest() not in registered:
        name = request.device_id
        log.warning("device-key-unknown: somebody without its registered key asked for a certificate of %s", name)
        raise DeviceKeyUnknownError(
            f"the key is not the one that is registered for {name}, or {name} was removed: a certificate alone does "
            "not renew; if the device is genuine, replace its identity, or enrol it anew"
        )
    signed = signed_bytes(request.device_id, request.nonce, request.csr_pem)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(bytes.fromhex(request.signature), signed, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(bytes.fromhex(request.signature), signed)
    except (InvalidSignature, ValueError) as error:
        log.warning("device-key-unknown: a renewal of %s is not signed by its key", device.id)
        raise DeviceKeyUnknownError("the request is not signed by the key that it names") from error
    return device


def _check_standing(device: Device, settings: Settings, now: datetime) -> None:
    """Told only to who holds the key."""
    if device.decommissioned_at is not None:
        raise DeviceDecommissionedError(f"{device.id} was decommissioned at {device.decommissioned_at.isoformat()}")
    if device.revoked_at is not None:
        raise DeviceRevokedError(f"{device.id} was revoked at {device.revoked_at.isoformat()}")
    newest = max(device.certificate_not_after, device.next_not_after or device.certificate_not_after)
    if newest + timedelta(days=settings.renew_grace_days) < now:
        raise RenewalTooLateError(
            f"the certificate of {device.id} expired at {newest.isoformat()}, longer than "
            f"{settings.renew_grace_days:g} days ago: an operator must replace its identity"
        )
