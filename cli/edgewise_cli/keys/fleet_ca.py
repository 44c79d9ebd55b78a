"""The fleet's certificate authority: an offline root, and the server's intermediate under it.

The root signs one CSR. What the CSR asks for is not taken over: the subject, the lifetime
and the constraints are set here.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from edgewise_protocol.renewal import FleetCaPins

from edgewise_cli.errors import TrustError

ROOT_DAYS: Final = 3650
INTERMEDIATE_DAYS: Final = 730
_SKEW: Final = timedelta(hours=1)
_USAGE: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def make_root(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """The self-signed root certificate of a fleet."""
    name = _name("Edgewise fleet root")
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=ROOT_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def sign_intermediate(
    csr_pem: str, root: x509.Certificate, key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.Certificate:
    """The certificate of the server's intermediate.

    Raises:
        TrustError: the CSR is damaged, or its key is not a P-256 key that it holds.
    """
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        valid = csr.is_signature_valid
        public = csr.public_key()
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise TrustError(f"the intermediate's CSR cannot be read: {error}") from error
    if not valid:
        raise TrustError("the intermediate's CSR is not signed by the key that it names")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise TrustError("the intermediate's key is not a P-256 key")
    return (
        x509.CertificateBuilder()
        .subject_name(_name("Edgewise fleet intermediate"))
        .issuer_name(root.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=INTERMEDIATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def pem(certificate: x509.Certificate) -> str:
    """PEM text of a certificate."""
    return certificate.public_bytes(Encoding.PEM).decode()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def pins(root: x509.Certificate, intermediate: x509.Certificate) -> FleetCaPins:
    """What the offline keys say of the fleet's CA: this root, and this intermediate alone."""
    return FleetCaPins(roots=(_digest(root),), intermediates=(_digest(intermediate),))


def read_certificate(data: bytes) -> x509.Certificate:
    """One PEM certificate; raise `TrustError` if it is none."""
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise TrustError(f"this is not a PEM certificate: {error}") from error


def _digest(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
