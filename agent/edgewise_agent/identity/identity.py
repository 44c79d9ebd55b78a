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
from edgewise_protocol.manifest import Name, check_major
from msgspec import Meta

from edgewise_agent.durable import sync_dir, write_atomic
from edgewise_agent.errors import IdentityError, NotEnrolledError
from edgewise_agent.identity.certificates import check_certificate, load_key

FOLDER: Final = "identity"
KEY_FILE: Final = "key.pem"
CERTIFICATE_FILE: Final = "certificate.pem"
FLEET_CA_FILE: Final = "fleet-ca.pem"
ROOT_FILE: Final = "root.json"
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


@dataclass(frozen=True)
class Identity:
    card: Card
    folder: Path
    tuf_root: bytes
    certificate_from: datetime
    """Start of the certificate's validity: a time that is surely past."""

    def tls(self) -> ssl.SSLContext | None:
        """Mutual TLS with the fleet's root as the only authority, or None for a broker without TLS."""
        if not self.card.broker.tls:
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self.folder / FLEET_CA_FILE))
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
        NotEnrolledError, IdentityError: it is missing, damaged, expired or not of this fleet.
    """
    card = read_card(state)
    folder = state / FOLDER
    try:
        key = load_key(_read(folder / KEY_FILE))
        chain = _read(folder / CERTIFICATE_FILE).decode("ascii")
        fleet_ca = _read(folder / FLEET_CA_FILE).decode("ascii")
        root = _read(folder / ROOT_FILE)
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"the identity is damaged: {error}") from error
    begins = check_certificate(chain, fleet_ca, key, card.device_id, now)
    return Identity(card, folder, root, begins)


def save_identity(state: Path, card: Card, *, key: bytes, certificate: str, fleet_ca: str, tuf_root: str) -> None:
    """Write the identity, the card last; raises `StorageError`."""
    folder = state / FOLDER
    write_atomic(folder / KEY_FILE, key, mode=0o600)
    write_atomic(folder / CERTIFICATE_FILE, certificate.encode())
    write_atomic(folder / FLEET_CA_FILE, fleet_ca.encode())
    write_atomic(folder / ROOT_FILE, tuf_root.encode())
    write_atomic(folder / CARD_FILE, msgspec.json.format(msgspec.json.encode(card), indent=1))
    sync_dir(state)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_BYTES)
