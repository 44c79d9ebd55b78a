"""The fleet's intermediate CA: its key and CSR, device certificates, revocation list.

A device's CSR proves possession of its key and gives nothing else: subject, channel and
lifetime are the server's (RFC 5280; the enrolment token is what identifies the device).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewise_server.errors import CertificateError, CsrError, SettingsError
from edgewise_server.files import write_atomic
from edgewise_server.pki.leaf import client_leaf, server_leaf
from edgewise_server.trust.keys import NEXT_FOLDER, load_private

KEY_FILE: Final = "intermediate.pem"
CLOCK_SKEW: Final = timedelta(minutes=5)
"""Certificates are valid from a little before they are made."""
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)


@dataclass(frozen=True)
class Issued:
    """A device certificate."""

    chain_pem: str
    """Leaf first, then the intermediate."""
    serial: str
    """Hexadecimal."""
    not_after: datetime
    key_sha256: str
    """SHA-256 of the SubjectPublicKeyInfo of the certified key."""


@dataclass(frozen=True)
class Credential:
    """A certificate of a service, and the key that was made for it."""

    key_pem: str
    chain_pem: str
    """Leaf first, then the intermediate."""

    @property
    def bundle(self) -> bytes:
        """Chain and key as one PEM file, so that both are replaced at once."""
        return (self.chain_pem + self.key_pem).encode()


Keys = tuple[ec.EllipticCurvePrivateKey, ...]


class Authority:
    """Holds the intermediate key; certificates are arguments, since they live in the database.

    While a rotation is under way there are two keys, the newest first: the one that signs is the
    one that the intermediate certificate is for.

    Args:
        keys: intermediate keys.
        reload: reads them again, where a rotation may have been begun by another process.
    """

    def __init__(self, *keys: ec.EllipticCurvePrivateKey, reload: Callable[[], Keys] | None = None) -> None:
        self._keys = keys
        self._reload = reload

    def refresh(self) -> None:
        """Read the keys again."""
        if self._reload is not None:
            self._keys = self._reload()

    def _key_for(self, intermediate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
        """The key that a certificate is for; raise `CertificateError` if it is none of ours."""
        wanted = spki(intermediate.public_key())
        for again in (False, True):
            if again:
                self.refresh()
            for key in self._keys:
                if spki(key.public_key()) == wanted:
                    return key
        raise CertificateError("the intermediate certificate is for another key than this server's")

    def newest_is_for(self, intermediate_pem: str) -> bool:
        """Whether a certificate is for the newest key."""
        return spki(load_certificate(intermediate_pem).public_key()) == spki(self._keys[0].public_key())

    def secret(self, intermediate_pem: str, purpose: bytes) -> bytes:
        """32 bytes that only the holders of the key in force can derive (HKDF, RFC 5869)."""
        numbers = self._key_for(load_certificate(intermediate_pem)).private_numbers()
        private = numbers.private_value.to_bytes(66, "big")
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose).derive(private)

    def csr_pem(self) -> str:
        """The CSR that the offline CA root signs in the ceremony."""
        builder = x509.CertificateSigningRequestBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Edgewise fleet intermediate")])
        ).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return builder.sign(self._keys[0], hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def check_intermediate(self, root_pem: str, intermediate_pem: str, now: datetime) -> None:
        """Check the certificates of a ceremony.

        Raises:
            CertificateError: not certificates, not CAs, not valid now, not signed by the
                root, or the intermediate is for another key than ours.
        """
        root, intermediate = load_certificate(root_pem), load_certificate(intermediate_pem)
        for name, certificate, issuer in (("root", root, root), ("intermediate", intermediate, root)):
            try:
                certificate.verify_directly_issued_by(issuer)
            except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
                raise CertificateError(f"the CA {name} certificate is not signed by the fleet's CA root") from error
            if not _is_ca(certificate):
                raise CertificateError(f"the CA {name} certificate is not one of a CA")
            if not certificate.not_valid_before_utc <= now + CLOCK_SKEW or now >= certificate.not_valid_after_utc:
                raise CertificateError(f"the CA {name} certificate is not valid now")
        self._key_for(intermediate)

    def issue(
        self, csr_pem: str, intermediate_pem: str, *, device_id: str, channel: str, now: datetime, days: float
    ) -> Issued:
        """A client certificate for the key of a CSR, whose subject is ignored.

        CN is the device id, OU the channel; a URI SAN `edgewise:<channel>/<id>` says both.

        Raises:
            CsrError: not a CSR, a key of an unacceptable kind, or a wrong self-signature.
            CertificateError: the intermediate is about to expire.
        """
        public_key = _key_of(csr_pem)
        intermediate = load_certificate(intermediate_pem)
        key = self._key_for(intermediate)
        not_after = min(now + timedelta(days=days), intermediate.not_valid_after_utc).replace(microsecond=0)
        if not_after <= now:
            raise CertificateError(
                "the fleet's intermediate certificate has expired: make new online keys (`edgewise-server rotate-keys`)"
            )
        serial = x509.random_serial_number()
        builder = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, channel),
                        x509.NameAttribute(NameOID.COMMON_NAME, device_id),
                    ]
                )
            )
            .issuer_name(intermediate.subject)
            .public_key(public_key)
            .serial_number(serial)
            .not_valid_before((now - CLOCK_SKEW).replace(microsecond=0))
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"edgewise:{channel}/{device_id}")]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
                critical=False,
            )
        )
        leaf = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
        key_sha256 = hashlib.sha256(spki(public_key)).hexdigest()
        return Issued(leaf + intermediate_pem.strip() + "\n", format(serial, "x"), not_after, key_sha256)

    def issue_server(self, intermediate_pem: str, *, hosts: Sequence[str], now: datetime, days: float) -> Credential:
        """A new key, and a certificate for a server (EKU serverAuth) that has these DNS names or IP addresses.

        Raises:
            InvalidError: a host is neither a name nor an address. CertificateError: the intermediate has expired.
        """
        key, intermediate = ec.generate_private_key(ec.SECP256R1()), load_certificate(intermediate_pem)
        leaf = server_leaf(self._key_for(intermediate), key.public_key(), intermediate, hosts=hosts, now=now, days=days)
        return _credential(key, leaf, intermediate_pem)

    def issue_client(self, intermediate_pem: str, *, name: str, now: datetime, days: float) -> Credential:
        """A new key, and a certificate for a client of the broker (EKU clientAuth) whose user name is `name`.

        Raises:
            CertificateError: the intermediate has expired.
        """
        key, intermediate = ec.generate_private_key(ec.SECP256R1()), load_certificate(intermediate_pem)
        leaf = client_leaf(self._key_for(intermediate), key.public_key(), intermediate, name=name, now=now, days=days)
        return _credential(key, leaf, intermediate_pem)

    def revocation_list(
        self,
        intermediate_pem: str,
        revoked: Iterable[tuple[str, datetime]],
        *,
        number: int,
        now: datetime,
        days: float,
    ) -> tuple[str, datetime]:
        """The CRL as PEM, and its next update. `revoked`: (hexadecimal serial, time) pairs."""
        intermediate = load_certificate(intermediate_pem)
        key = self._key_for(intermediate)
        next_update = (now + timedelta(days=days)).replace(microsecond=0)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(intermediate.subject)
            .last_update((now - CLOCK_SKEW).replace(microsecond=0))
            .next_update(next_update)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        )
        for serial, at in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(at).build()
            )
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode(), next_update


def _credential(key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate, intermediate_pem: str) -> Credential:
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return Credential(key_pem, leaf.public_bytes(Encoding.PEM).decode() + intermediate_pem.strip() + "\n")


def create_authority(folder: Path) -> Authority:
    """Make the intermediate key if it is missing, and load it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_key(folder)
    return load_authority(folder)


def make_key(folder: Path) -> None:
    """Make the intermediate key, if it is missing."""
    path = folder / KEY_FILE
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)


def load_authority(folder: Path) -> Authority:
    """Load the intermediate key; raise `SettingsError` if it cannot be used."""
    return Authority(*_load(folder), reload=lambda: _load(folder))


def _load(folder: Path) -> Keys:
    newer = folder / NEXT_FOLDER / KEY_FILE
    found: list[ec.EllipticCurvePrivateKey] = []
    for path in (*((newer,) if newer.exists() else ()), folder / KEY_FILE):
        key = load_private(path)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SettingsError(f"{path} is not an elliptic-curve key")
        found.append(key)
    return tuple(found)


def load_certificate(pem: str) -> x509.Certificate:
    """One PEM certificate; raise `CertificateError` if it is not one."""
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise CertificateError("this is not a PEM certificate") from error


def _key_of(csr_pem: str) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key, valid = csr.public_key(), csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, TypeError) as error:
        raise CsrError("this is not a PEM certificate signing request") from error
    if not valid:
        raise CsrError("the CSR's signature is wrong: whoever made it does not hold the key")
    if isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)
    ):
        return key
    raise CsrError("a device key must be P-256, P-384 or Ed25519")


def _usage(*, signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def spki(key: object) -> bytes:
    """DER of a public key's SubjectPublicKeyInfo; empty for a key of a kind that devices do not have."""
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
