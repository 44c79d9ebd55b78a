"""The identity that enrolment left in the state folder."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from edgewise_protocol.enrolment import BrokerAddress
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import Name, Sha256, check_major
from edgewise_protocol.renewal import MAX_CA_CERTIFICATES
from msgspec import Meta

from edgewise_agent.durable import sync_dir, write_atomic
from edgewise_agent.errors import IdentityError, NotEnrolledError, StorageError
from edgewise_agent.identity.certificates import Validity, check_certificate, issuer_pem, key_pem, load_key, make_key

FOLDER: Final = "identity"
KEY_FILE: Final = "key.pem"
CERTIFICATE_FILE: Final = "certificate.pem"
FLEET_CA_FILE: Final = "fleet-ca.pem"
ROOT_FILE: Final = "root.json"
NEXT_KEY_FILE: Final = "next-key.pem"
RENEWED_FILE: Final = "renewed.json"
CARD_FILE: Final = "identity.json"
"""Written last: with it the enrolment is complete."""
_MAX_BYTES: Final = 1 << 20


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """`identity.json`."""

    spec_version: str = "1.0"
    device_id: Name
    channel: Name
    server_url: Annotated[str, Meta(max_length=500)]
    broker: BrokerAddress
    simulated_board: str = ""
    left: Annotated[tuple[Sha256, ...], Meta(max_length=MAX_CA_CERTIFICATES)] = ()
    """SHA-256 of intermediates that this device has left behind: it never goes back to one."""


@dataclass(frozen=True)
class Identity:
    card: Card
    folder: Path
    tuf_root: bytes
    validity: Validity
    """Of the certificate; its end may be past: the device then serves, and renews."""
    fleet_ca: str
    """PEM of the fleet's root certificate."""
    issuer: str
    """PEM of the certificate that issued this device's: the fleet's intermediate."""

    @property
    def certificate_from(self) -> datetime:
        """Start of the certificate's validity: a time that is surely past."""
        return self.validity.begins

    def tls(self) -> ssl.SSLContext | None:
        """Mutual TLS, or None for a broker without TLS.

        The only authority is the intermediate that issued this device's own certificate, not the root above it: else
        whoever stole an earlier intermediate could pose as the broker for as long as that one's certificate lasts.
        A broker refuses certificates of any other intermediate anyway, so nothing is lost.
        """
        if not self.card.broker.tls:
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=self.issuer)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(str(self.folder / CERTIFICATE_FILE), str(self.folder / KEY_FILE))
        except (OSError, ssl.SSLError) as error:
            raise IdentityError(f"the certificate cannot be used for TLS: {error}") from error
        return context


def read_card(state: Path) -> Card:
    """Read `identity.json` alone.

    Raises:
        NotEnrolledError: there is none.
        IdentityError: it is damaged.
    """
    try:
        card = msgspec.json.decode(_read(state / FOLDER / CARD_FILE), type=Card)
        check_major(card.spec_version)
    except FileNotFoundError as error:
        raise NotEnrolledError(
            f"{state} holds no identity: run `edgewise-agent enrol FILE --state {state}` first"
        ) from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, ProtocolError) as error:
        raise IdentityError(f"{CARD_FILE} is unreadable: {error}") from error
    return card


def load_identity(state: Path, now: datetime) -> Identity:
    """Read and check the identity.

    Raises:
        NotEnrolledError, IdentityError: it is missing, damaged or not of this fleet.
        StorageError: a renewal that a crash interrupted cannot be finished.
    """
    read_card(state)
    finish_renewal(state)
    return inspect_identity(state, now)


def inspect_identity(state: Path, now: datetime) -> Identity:
    """Read and check the identity as it is, and change nothing: for `doctor`, beside a running agent.

    Raises:
        NotEnrolledError, IdentityError: it is missing, damaged or not of this fleet.
    """
    card = read_card(state)
    folder = state / FOLDER
    try:
        key = load_key(_read(folder / KEY_FILE))
        chain = _read(folder / CERTIFICATE_FILE).decode("ascii")
        fleet_ca = _read(folder / FLEET_CA_FILE).decode("ascii")
        root = _read(folder / ROOT_FILE)
    except OSError as error:
        raise IdentityError(f"the identity is damaged: {error.filename} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise IdentityError(f"the identity is damaged: {error}") from error
    validity = check_certificate(chain, fleet_ca, key, card.device_id, now, allow_expired=True)
    return Identity(card, folder, root, validity, fleet_ca, issuer_pem(chain, fleet_ca))


def save_identity(state: Path, card: Card, *, key: bytes, certificate: str, fleet_ca: str, tuf_root: str) -> None:
    """Write the identity, the card last; raises `StorageError`."""
    folder = state / FOLDER
    write_atomic(folder / KEY_FILE, key, mode=0o600)
    write_atomic(folder / CERTIFICATE_FILE, certificate.encode())
    write_atomic(folder / FLEET_CA_FILE, fleet_ca.encode())
    write_atomic(folder / ROOT_FILE, tuf_root.encode())
    write_atomic(folder / CARD_FILE, msgspec.json.format(msgspec.json.encode(card), indent=1))
    sync_dir(state)


class Renewed(msgspec.Struct, frozen=True, kw_only=True):
    """`renewed.json`: a verified answer to a renewal, written before any file of the identity is replaced.

    With `next-key.pem` it is a redo log: whoever finds it, finishes what it says.
    """

    card: Card
    certificate_pem: str
    fleet_ca: str


def pending_key(folder: Path) -> bytes:
    """PEM of the key of the next certificate, made and kept before the server hears of it.

    Raises:
        StorageError: it cannot be written. IdentityError: it cannot be read.
    """
    path = folder / NEXT_KEY_FILE
    try:
        found = _read(path) if path.exists() else b""
        present = _read(folder / KEY_FILE)
    except OSError as error:
        raise IdentityError(f"the device's key is unreadable: {error}") from error
    if not found or found == present:
        found = key_pem(make_key())
        write_atomic(path, found, mode=0o600)
    return found


def keep_renewed(folder: Path, renewed: Renewed) -> None:
    """Commit to a verified answer; `finish_renewal` carries it out. Raises `StorageError`."""
    write_atomic(folder / RENEWED_FILE, msgspec.json.encode(renewed), mode=0o600)


def finish_renewal(state: Path) -> bool:
    """Replace the identity by a renewed one that was committed to; returns whether there was one. Repeatable.

    Raises:
        StorageError: the disk refuses. IdentityError: the log is damaged.
    """
    folder = state / FOLDER
    try:
        renewed = msgspec.json.decode(_read(folder / RENEWED_FILE), type=Renewed)
        key = _read(folder / NEXT_KEY_FILE)
    except FileNotFoundError:
        return False
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IdentityError(f"{RENEWED_FILE} is unreadable: {error}") from error
    write_atomic(folder / KEY_FILE, key, mode=0o600)
    write_atomic(folder / CERTIFICATE_FILE, renewed.certificate_pem.encode())
    write_atomic(folder / FLEET_CA_FILE, renewed.fleet_ca.encode())
    write_atomic(folder / CARD_FILE, msgspec.json.format(msgspec.json.encode(renewed.card), indent=1))
    try:
        (folder / RENEWED_FILE).unlink()
        sync_dir(folder)
        (folder / NEXT_KEY_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{RENEWED_FILE} could not be removed: {error.strerror or error}") from error
    return True


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_BYTES)
