"""Another intermediate of the fleet's CA comes into force: the old one was stolen, or ends soon."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256

from cryptography.hazmat.primitives.serialization import Encoding
from edgewise_protocol.renewal import FleetCaPins
from sqlmodel import Session

from edgewise_server.db import hold_lock
from edgewise_server.errors import CertificateError
from edgewise_server.models.trust import FleetCa
from edgewise_server.pki.authority import Authority, load_certificate
from edgewise_server.services import identity


def digest(pem: str) -> str:
    """SHA-256 of a certificate's DER, hexadecimal; raise `CertificateError` if it is none."""
    return sha256(load_certificate(pem).public_bytes(Encoding.DER)).hexdigest()


def change(
    session: Session,
    authority: Authority,
    pins: FleetCaPins,
    fleet_ca_pem: str,
    intermediate_pem: str,
    *,
    now: datetime,
) -> bool:
    """Put an intermediate into force; returns whether it was not yet.

    Devices follow by themselves: the broker refuses what the old intermediate issued, since nobody
    signs a revocation list for it any more, and the targets metadata no longer name it.

    Args:
        pins: what the offline keys stand for. Another CA root than the present one must be among it.

    Raises:
        NoTrustError: before the ceremony.
        CertificateError: the offline keys do not stand for it, it is not under the CA root, not valid
            now, or not for a key of this server.
    """
    hold_lock(session, "crl")
    present: FleetCa = identity.fleet_ca(session)
    root, intermediate = digest(fleet_ca_pem), digest(intermediate_pem)
    if root != digest(present.root_pem) and root not in pins.roots:
        raise CertificateError("another CA root must be named by the offline-signed targets metadata first")
    if pins.intermediates and intermediate not in pins.intermediates:
        raise CertificateError(
            "the offline-signed targets metadata do not name this intermediate: publish those of its rotation first"
        )
    authority.check_intermediate(fleet_ca_pem, intermediate_pem, now)
    if (root, intermediate) == (digest(present.root_pem), digest(present.intermediate_pem)):
        return False
    present.root_pem, present.intermediate_pem = fleet_ca_pem, intermediate_pem
    present.crl_pem, present.crl_expires_at = "", None
    session.add(present)
    session.flush()
    return True
