"""Certificates of services: the broker, the HTTPS interface, and the server as a client of the broker.

A device's certificate is for client authentication only, and these carry what each needs and no more (RFC 5280
section 4.2.1.12), so that no device can pose as the broker.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewise_server.errors import CertificateError, InvalidError

MAX_NAMES: Final = 32
_MAX_NAME: Final = 253
"""Characters of a DNS name (RFC 1035 section 2.3.4)."""
_SKEW: Final = timedelta(minutes=5)


def alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    """DNS names and IP addresses as a SAN, each once.

    Raises:
        InvalidError: none, too many, or one that is neither a DNS name nor an IP address.
    """
    wanted = tuple(dict.fromkeys(hosts))
    if not 0 < len(wanted) <= MAX_NAMES:
        raise InvalidError(f"a server's certificate needs 1 to {MAX_NAMES} host names; these are {len(wanted)}")
    return x509.SubjectAlternativeName([_name(host) for host in wanted])


def server_leaf(
    key: ec.EllipticCurvePrivateKey,
    public: ec.EllipticCurvePublicKey,
    intermediate: x509.Certificate,
    *,
    hosts: Sequence[str],
    now: datetime,
    days: float,
) -> x509.Certificate:
    """A certificate by which a server shows that it has one of `hosts`; raises as `alternative_names` does."""
    names = alternative_names(hosts)
    common = hosts[0][:64]
    return _leaf(key, public, intermediate, common, names, ExtendedKeyUsageOID.SERVER_AUTH, now, days)


def client_leaf(
    key: ec.EllipticCurvePrivateKey,
    public: ec.EllipticCurvePublicKey,
    intermediate: x509.Certificate,
    *,
    name: str,
    now: datetime,
    days: float,
) -> x509.Certificate:
    """A certificate by which a client shows that it is `name`, which the broker takes as its user name."""
    return _leaf(key, public, intermediate, name, None, ExtendedKeyUsageOID.CLIENT_AUTH, now, days)


def _leaf(
    key: ec.EllipticCurvePrivateKey,
    public: ec.EllipticCurvePublicKey,
    intermediate: x509.Certificate,
    common: str,
    names: x509.SubjectAlternativeName | None,
    purpose: x509.ObjectIdentifier,
    now: datetime,
    days: float,
) -> x509.Certificate:
    not_after = min(now + timedelta(days=days), intermediate.not_valid_after_utc).replace(microsecond=0)
    if not_after <= now:
        raise CertificateError(
            "the fleet's intermediate certificate has expired: make new online keys (`edgewise-server rotate-keys`)"
        )
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]))
        .issuer_name(intermediate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before((now - _SKEW).replace(microsecond=0))
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256())


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.rstrip(".").split(".")
    if len(host) > _MAX_NAME or not host.isascii() or not all(_is_label(label) for label in labels):
        raise InvalidError(f"{host[:80]!r} is neither a DNS name nor an IP address")
    return x509.DNSName(host.rstrip("."))


def _is_label(label: str) -> bool:
    bare = label.replace("-", "").replace("_", "")
    return 0 < len(label) <= 63 and bare.isalnum() and label[0] != "-" and label[-1] != "-"
