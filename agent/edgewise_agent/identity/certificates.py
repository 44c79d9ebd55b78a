"""The device's key and certificate. The key is made here and never leaves the device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgewise_agent.errors import IdentityError

_MAX_CHAIN: Final = 4
Key = ec.EllipticCurvePrivateKey


def make_key() -> Key:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """PKCS #8 PEM, not encrypted: the device must start without an operator; the file is 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> Key:
    """Read a key; raises `IdentityError`."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise IdentityError("the device's key is unreadable") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError("the device's key is of another kind than this agent makes")
    return key


def make_csr(key: Key) -> str:
    """A certificate request, PEM. Its subject is a placeholder: the server sets id and channel."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


@dataclass(frozen=True)
class Validity:
    """What a verified certificate says of itself."""

    begins: datetime
    ends: datetime
    serial: str
    """Hexadecimal."""
    intermediate_sha256: str
    """Of the DER of the certificate that issued it."""

    def used(self, now: datetime) -> float:
        """The part of its life that is over at `now`; may be below 0 and above 1."""
        return (now - self.begins) / (self.ends - self.begins)


def public_pem(key: Key) -> str:
    """The public key, SubjectPublicKeyInfo as PEM."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def sign(key: Key, data: bytes) -> str:
    """An ECDSA signature with SHA-256, DER, hexadecimal."""
    return key.sign(data, ec.ECDSA(hashes.SHA256())).hex()


def check_certificate(
    chain_pem: str, fleet_ca_pem: str, key: Key, device_id: str, now: datetime, *, allow_expired: bool = False
) -> Validity:
    """Verify a certificate chain, leaf first, up to the fleet's root.

    Args:
        allow_expired: accept one whose time is over: it serves no more at the broker, but it can be renewed.

    Raises:
        IdentityError: it does not lead to the fleet's root, is not for this key or id, or is not valid now.
    """
    try:
        chain = x509.load_pem_x509_certificates(chain_pem.encode())
        (root,) = x509.load_pem_x509_certificates(fleet_ca_pem.encode())
    except ValueError as error:
        raise IdentityError("the certificate or the fleet's root is not PEM, or not one certificate") from error
    if len(chain) > _MAX_CHAIN:
        raise IdentityError(f"the certificate has a chain of {len(chain)}; at most {_MAX_CHAIN} are allowed")
    leaf = chain[0]
    if leaf.public_key() != key.public_key():
        raise IdentityError("the certificate is for another key")
    names = [str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [device_id]:
        raise IdentityError(f"the certificate is for {', '.join(names) or 'nobody'}; this device is {device_id}")
    path = chain if chain[-1] == root else [*chain, root]
    for issued, issuer in pairwise(path):
        _check_issued(issued, issuer)
    for certificate in path:
        if certificate.not_valid_after_utc <= now and not allow_expired:
            raise IdentityError(f"a certificate of the chain expired at {certificate.not_valid_after_utc.isoformat()}")
    return Validity(
        begins=leaf.not_valid_before_utc.astimezone(UTC),
        ends=leaf.not_valid_after_utc.astimezone(UTC),
        serial=format(leaf.serial_number, "x"),
        intermediate_sha256=sha256_of(path[1]),
    )


def issuer_pem(chain_pem: str, fleet_ca_pem: str) -> str:
    """PEM of the certificate that issued the leaf of a verified chain: the second of the chain, or the root."""
    chain = x509.load_pem_x509_certificates(chain_pem.encode())
    if len(chain) == 1:
        return fleet_ca_pem
    return chain[1].public_bytes(serialization.Encoding.PEM).decode()


def sha256_of(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate's DER, hexadecimal."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def root_sha256(fleet_ca_pem: str) -> str:
    """SHA-256 of the fleet's root certificate; raise `IdentityError` if it is not one certificate."""
    try:
        (root,) = x509.load_pem_x509_certificates(fleet_ca_pem.encode())
    except ValueError as error:
        raise IdentityError("the fleet's root is not PEM, or not one certificate") from error
    return sha256_of(root)


def _check_issued(issued: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        issued.verify_directly_issued_by(issuer)
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise IdentityError("the certificate does not lead to the fleet's root") from error
    if not constraints.ca:
        raise IdentityError("a certificate of the chain is not an authority's")
