"""Whether a certificate on the disk still serves, or a new one is due. Pure functions of the file's content."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from edgewise_server.pki.leaf import alternative_names


def why_due(
    content: bytes | None,
    intermediate: x509.Certificate,
    now: datetime,
    *,
    hosts: Sequence[str] = (),
    name: str = "",
) -> str:
    """Why a PEM file of chain and key must be made anew; empty where it serves.

    Args:
        content: the file's bytes, or None where there is none.
        hosts: for a server, the names that its certificate must have, and no others.
        name: for a client, its user name.
    """
    if content is None:
        return "there is none yet"
    try:
        leaf = x509.load_pem_x509_certificates(content)[0]
        key = load_pem_private_key(content, None).public_key()
        leaf.verify_directly_issued_by(intermediate)
    except (ValueError, TypeError, IndexError, UnsupportedAlgorithm):
        return "it cannot be read, or another authority issued it"
    except InvalidSignature:
        return "it was issued by an authority that the fleet has replaced"
    if _spki(key) != _spki(leaf.public_key()):
        return "its key is another one's"
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    if now >= leaf.not_valid_before_utc + life * 2 / 3:
        return "two thirds of its life are over"
    if hosts and _names(leaf) != set(alternative_names(hosts)):
        return "the broker's names have changed"
    if name and [str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] != [name]:
        return "it is for another name"
    return ""


def _names(leaf: x509.Certificate) -> set[x509.GeneralName]:
    try:
        return set(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return set()


def _spki(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]


def serials(crl: bytes | None) -> frozenset[str]:
    """The revoked serials of a CRL, hexadecimal; none where it is missing or cannot be read."""
    if crl is None:
        return frozenset()
    try:
        return frozenset(format(entry.serial_number, "x") for entry in x509.load_pem_x509_crl(crl))
    except ValueError:
        return frozenset()
