"""Renewal: a device proves that it holds its registered key, and gets a certificate for a new one.

The proof is a signature by the key that the server has registered for the device, not the
device's certificate: a certificate that a stolen intermediate minted proves nothing. It
covers a nonce of the server's, so that a device with a wrong clock can renew and a recorded
request cannot be played again.

    POST /api/v1/renew/nonce   NonceRequest  -> NonceResponse
    POST /api/v1/renew         RenewRequest  -> RenewResponse
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from tuf.api.metadata import Targets

from edgewise_protocol.bounds import MAX_ROOT_BYTES
from edgewise_protocol.enrolment import BrokerAddress
from edgewise_protocol.errors import MalformedError
from edgewise_protocol.manifest import Name, Sha256
from edgewise_protocol.targets import CUSTOM_KEY

CONTEXT: Final = b"edgewise device certificate renewal v1"
MAX_PEM_CHARS: Final = 65_536
FLEET_CA_KEY: Final = "fleet_ca"
"""In the targets metadata's `edgewise` field: which CA certificates the offline keys stand for."""
MAX_CA_CERTIFICATES: Final = 16

Pem = Annotated[str, Meta(min_length=1, max_length=MAX_PEM_CHARS)]
Nonce = Annotated[str, Meta(min_length=16, max_length=200, pattern=r"^[A-Za-z0-9_-]+$(?!\n)")]


class NonceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /api/v1/renew/nonce`."""

    device_id: Name


class NonceResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /api/v1/renew/nonce`."""

    nonce: Nonce
    expires_in_s: Annotated[float, Meta(gt=0, le=86_400)]


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /api/v1/renew`. The CSR is for the new key; the signature is by the registered one."""

    device_id: Name
    nonce: Nonce
    csr_pem: Annotated[str, Meta(min_length=1, max_length=16_384)]
    public_key_pem: Annotated[str, Meta(min_length=1, max_length=4_096)]
    """SubjectPublicKeyInfo of the key that signs."""
    signature: Annotated[str, Meta(min_length=16, max_length=1_024, pattern=r"^[0-9a-f]+$(?!\n)")]
    """Over `signed_bytes`, hexadecimal: ECDSA with SHA-256 (DER), or Ed25519."""


class RenewResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /api/v1/renew`: all that a device needs to reach its fleet again."""

    device_id: Name
    channel: Name
    certificate_pem: Pem
    """Leaf first, then intermediates."""
    fleet_ca: Annotated[str, Meta(min_length=1, max_length=MAX_ROOT_BYTES)]
    """PEM of the fleet's root certificate."""
    broker: BrokerAddress
    server_url: Annotated[str, Meta(pattern=r"^https?://", max_length=500)]


class FleetCaPins(msgspec.Struct, frozen=True, kw_only=True):
    """SHA-256 of DER certificates that the offline keys stand for. Empty: nothing is said."""

    roots: Annotated[tuple[Sha256, ...], Meta(max_length=MAX_CA_CERTIFICATES)] = ()
    intermediates: Annotated[tuple[Sha256, ...], Meta(max_length=MAX_CA_CERTIFICATES)] = ()


def signed_bytes(device_id: str, nonce: str, csr_pem: str) -> bytes:
    """What the registered key signs: every part with its length before it, so that none runs into the next."""
    parts = (CONTEXT, device_id.encode(), nonce.encode(), hashlib.sha256(csr_pem.encode()).digest())
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def fleet_ca_pins(trusted: Targets) -> FleetCaPins:
    """The CA certificates that the offline-signed targets metadata name; raise `MalformedError` if damaged."""
    field: Any = trusted.unrecognized_fields.get(CUSTOM_KEY) or {}
    try:
        return msgspec.convert(field.get(FLEET_CA_KEY, {}), FleetCaPins)
    except (AttributeError, msgspec.ValidationError) as error:
        raise MalformedError(f"the fleet CA in the targets metadata is not valid: {error}") from error


def set_fleet_ca_pins(targets: Targets, pins: FleetCaPins) -> None:
    """Write into `targets` which CA certificates count."""
    field: Any = dict(targets.unrecognized_fields.get(CUSTOM_KEY) or {})
    field[FLEET_CA_KEY] = msgspec.to_builtins(pins)
    targets.unrecognized_fields[CUSTOM_KEY] = field
