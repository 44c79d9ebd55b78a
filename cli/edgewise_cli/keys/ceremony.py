"""The first ceremony: the offline keys sign the first root and targets metadata.

Pure: keys come in, signed metadata and certificates go out. Files are the command's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from edgewise_protocol.renewal import set_fleet_ca_pins
from edgewise_protocol.targets import ROUNDS, auto_role
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Role, Root, Targets
from tuf.api.serialization import SerializationError
from tuf.api.serialization.json import JSONSerializer

from edgewise_cli.errors import FilesError, TrustError, UsageError
from edgewise_cli.keys import fleet_ca
from edgewise_cli.keys.delegations import delegate

ROOT_LIFE: Final = timedelta(days=365)
TARGETS_LIFE: Final = timedelta(days=90)


@dataclass(frozen=True)
class OnlineKeys:
    """The public keys that the server made, and the CSR of its fleet intermediate."""

    snapshot: Key
    timestamp: Key
    director: Key
    intermediate_csr_pem: str


@dataclass(frozen=True)
class Ceremony:
    """What the ceremony made; all of it is public."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    delegated: Mapping[str, Metadata[Targets]]
    fleet_ca_pem: str
    intermediate_pem: str

    def document(self) -> dict[str, Any]:
        """`ceremony.json`, the body of `PUT /api/v1/trust`."""
        return {
            "root": json.loads(encode(self.root)),
            "targets": json.loads(encode(self.targets)),
            "delegated": {role: json.loads(encode(m)) for role, m in self.delegated.items()},
            "fleet_ca_pem": self.fleet_ca_pem,
            "intermediate_pem": self.intermediate_pem,
        }


def read_online(document: Mapping[str, Any]) -> OnlineKeys:
    """The contents of the server's `online.json`."""
    try:
        keys = {
            role: Key.from_dict(str(document["keyids"][role]), dict(document[role]))
            for role in ("snapshot", "timestamp", "director")
        }
        return OnlineKeys(**keys, intermediate_csr_pem=str(document["intermediate_csr_pem"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FilesError(f"this is not the server's online.json: {error}") from error


def perform(
    *,
    root: Sequence[Signer],
    root_threshold: int,
    targets: Sequence[Signer],
    targets_threshold: int,
    rounds: Signer,
    offers: Signer,
    auto: Mapping[str, Signer],
    channels: Mapping[str, bool],
    online: OnlineKeys,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> Ceremony:
    """Sign the first metadata of a fleet.

    Args:
        auto: the worker's signer per channel that opted in.
        channels: every channel, and whether it opted in.

    Raises:
        UsageError: a threshold that its keys cannot meet.
        TrustError: a signer fails, or the CSR is not acceptable.
    """
    check_threshold("root", root_threshold, len(root))
    check_threshold("targets", targets_threshold, len(targets))
    roles = {
        "root": Role([], root_threshold),
        "timestamp": Role([], 1),
        "snapshot": Role([], 1),
        "targets": Role([], targets_threshold),
    }
    first = Root(version=1, expires=now + ROOT_LIFE, roles=roles, consistent_snapshot=True)
    for signer in root:
        first.add_key(signer.public_key, "root")
    for signer in targets:
        first.add_key(signer.public_key, "targets")
    first.add_key(online.snapshot, "snapshot")
    first.add_key(online.timestamp, "timestamp")

    top = Targets(version=1, expires=now + TARGETS_LIFE)
    delegate(
        top,
        director=online.director,
        rounds=rounds.public_key,
        offers=offers.public_key,
        auto={name: signer.public_key for name, signer in auto.items()},
        wanted=channels,
    )
    certificate = fleet_ca.make_root(ca_key, now)
    intermediate = fleet_ca.sign_intermediate(online.intermediate_csr_pem, certificate, ca_key, now)
    set_fleet_ca_pins(top, fleet_ca.pins(certificate, intermediate))
    workers = {ROUNDS: rounds, **{auto_role(name): auto[name] for name, opted in channels.items() if opted}}
    return Ceremony(
        root=sign(Metadata(first), root),
        targets=sign(Metadata(top), targets),
        delegated={role: sign(empty_role(now), [signer]) for role, signer in workers.items()},
        fleet_ca_pem=fleet_ca.pem(certificate),
        intermediate_pem=fleet_ca.pem(intermediate),
    )


def empty_role(now: datetime) -> Metadata[Targets]:
    """First metadata of a delegated role: nothing is signed yet."""
    return Metadata(Targets(version=1, expires=now + TARGETS_LIFE))


def check_threshold(role: str, threshold: int, keys: int) -> None:
    """Raise `UsageError` unless 1 <= threshold <= keys."""
    if not 1 <= threshold <= keys:
        raise UsageError(f"{role}: a threshold of {threshold} does not suit {keys} key(s)")


def sign(metadata: Metadata[Any], signers: Sequence[Signer]) -> Metadata[Any]:
    """Add the signature of each signer; the metadata are changed in place and returned."""
    for signer in signers:
        try:
            metadata.sign(signer, append=True)
        except (UnsignedMetadataError, SerializationError) as error:
            # python-tuf wraps whatever a signer raises in its UnsignedMetadataError.
            raise TrustError(f"the signer of key {signer.public_key.keyid[:12]} failed: {error}") from error
    return metadata


def encode(metadata: Metadata[Any]) -> bytes:
    """The bytes in which metadata are stored and sent."""
    return metadata.to_bytes(JSONSerializer())
