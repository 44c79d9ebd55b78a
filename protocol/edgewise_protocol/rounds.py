"""Offers of federated rounds: TUF Targets metadata signed by the `offers` role.

An offer names, by digest, the training bundle and the weights to start from. A device that
has no trust in the signature, or whose channel the offer does not name, does not train.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from tuf.api.metadata import Metadata, Targets

from edgewise_protocol.bounds import MAX_OFFER_BYTES
from edgewise_protocol.errors import MalformedError, OfferError, SignatureError, UnsignedOfferError
from edgewise_protocol.manifest import Name, check_major
from edgewise_protocol.metadata import check_signed, keys_digest, parse_targets
from edgewise_protocol.targets import (
    CUSTOM_KEY,
    OFFERS,
    ROUNDS,
    SignedFile,
    channel_of,
    from_target_file,
    to_target_file,
)


class OfferBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device is asked to do in one round."""

    round_id: Name
    federation: Name
    number: Annotated[int, Meta(ge=1, le=100_000)]
    channel: Name
    model: Name
    devices: Annotated[tuple[Name, ...], Meta(max_length=1_000)] = ()
    """Who is asked; empty asks every device of the channel that has data."""
    epochs: Annotated[int, Meta(ge=1, le=1_000)] = 1
    batch_size: Annotated[int, Meta(ge=1, le=4_096)] = 32
    lr: Annotated[float, Meta(gt=0, le=10)] = 0.05
    mu: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """FedProx's proximal weight (Li et al. 2020); 0 is FedAvg (McMahan et al. 2017)."""
    max_steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 2_000
    seed: int = 0
    spec_version: str = "1.0"


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A verified offer. It may be taken up until `expires`."""

    version: int
    expires: datetime
    body: OfferBody
    training: SignedFile
    weights: SignedFile
    keys: str = ""
    """Digest of the `offers` role's keys, see `metadata.keys_digest`; to be remembered with the number."""


KINDS: Final = ("training", "weights")


def build_offer(body: OfferBody, training: SignedFile, weights: SignedFile, *, expires: datetime) -> Metadata[Targets]:
    """The unsigned metadata of an offer; the worker's `offers` key signs it."""
    return Metadata(
        Targets(
            version=body.number,
            expires=expires,
            targets={file.path: to_target_file(file) for file in (training, weights)},
            unrecognized_fields={CUSTOM_KEY: _signable(body)},
        )
    )


def _signable(body: OfferBody) -> dict[str, Any]:
    """Canonical JSON, over which TUF signs, knows no floats: they stand as their shortest exact decimal text."""
    fields: dict[str, Any] = msgspec.to_builtins(body)
    return {name: repr(value) if isinstance(value, float) else value for name, value in fields.items()}


def verify_offer(data: bytes, trusted: Targets, *, device_id: str, channel: str, now: datetime) -> Offer:
    """Verify an offer against trusted targets metadata.

    Raises:
        MalformedError, UnsupportedVersionError: it cannot be read.
        UnsignedOfferError: not signed by the `offers` role.
        OfferError: expired, or not for this device or channel.
    """
    metadata = parse_targets(data, MAX_OFFER_BYTES, "round offer")
    try:
        check_signed(trusted, OFFERS, metadata)
    except SignatureError as error:
        raise UnsignedOfferError(f"the round offer is not signed by this fleet's offers role: {error}") from error
    try:
        # not strict: numbers that are not whole stand as text
        body = msgspec.convert(metadata.signed.unrecognized_fields.get(CUSTOM_KEY), OfferBody, strict=False)
    except msgspec.ValidationError as error:
        raise MalformedError(f"the round offer's edgewise field is not valid: {error}") from error
    check_major(body.spec_version)
    if body.channel != channel:
        raise OfferError(f"the round offer is for the channel {body.channel!r}; this device's is {channel!r}")
    if body.devices and device_id not in body.devices:
        raise OfferError("the round offer asks other devices")
    if metadata.signed.expires <= now:
        raise OfferError(f"the round offer expired at {metadata.signed.expires.isoformat()}")
    files = {f.custom.kind: f for f in map(from_target_file, metadata.signed.targets.values())}
    if set(files) != set(KINDS) or len(metadata.signed.targets) != len(KINDS):
        raise MalformedError("a round offer names one training bundle and one weights file")
    if any(not f.path.startswith(f"{ROUNDS}/") or channel_of(f.path) != channel for f in files.values()):
        raise OfferError("the round offer names files outside of its channel's rounds")
    return Offer(
        version=metadata.signed.version,
        expires=metadata.signed.expires,
        body=body,
        training=files["training"],
        weights=files["weights"],
        keys=keys_digest(trusted, OFFERS),
    )
