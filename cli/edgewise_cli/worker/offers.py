"""What the worker checks before it signs a round's offer. Pure.

The server asks for the signature, and the server may be in other hands: an offer is signed
only for a channel that the offline keys let opt in, for a training bundle that the rounds
role has signed, and for weights that were fetched, measured, and fit that bundle.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import TensorSpec
from edgewise_protocol.rounds import OfferBody, build_offer
from edgewise_protocol.targets import SignedFile, channel_of, from_target_file, weights_path
from safetensors import SafetensorError
from safetensors.numpy import load
from tuf.api.metadata import Metadata, Targets

from edgewise_cli.errors import RefusedError, TrustError
from edgewise_cli.keys.delegations import channels
from edgewise_cli.signing.bundles import check_file

MAX_LIFE: Final = timedelta(days=7)
"""A round's offer may not be open longer than this."""

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True)
class OfferRequest:
    """A `sign-offer` job, parsed; nothing in it is believed yet."""

    federation: str
    number: int
    body: OfferBody
    training: SignedFile
    weights: SignedFile
    expires: datetime


def parse_request(payload: Mapping[str, Any]) -> OfferRequest:
    """Read the payload of a `sign-offer` job.

    Raises:
        RefusedError: a field is missing or out of bounds.
    """
    try:
        return OfferRequest(
            federation=str(payload["federation"]),
            number=int(payload["number"]),
            body=msgspec.convert(payload["body"], OfferBody),
            training=msgspec.convert(payload["training"], SignedFile),
            weights=msgspec.convert(payload["weights"], SignedFile),
            expires=datetime.fromtimestamp(float(payload["expires_at"]), UTC).replace(microsecond=0),
        )
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise RefusedError(f"the job's offer is not well formed: {error}") from error


def check_names(request: OfferRequest, targets: Targets, rounds: Targets, now: datetime) -> None:
    """Check all that can be checked without the files.

    Args:
        targets, rounds: verified metadata of the top-level and the rounds role.

    Raises:
        RefusedError, TrustError: the offer must not be signed.
    """
    body = request.body
    check_opted_in(targets, body.channel)
    if body.number != request.number:
        raise RefusedError(f"the offer says round {body.number}, the job round {request.number}")
    if not now < request.expires <= now + MAX_LIFE:
        raise RefusedError(f"the offer would be open until {request.expires.isoformat()}; at most 7 days are signed")
    target = rounds.targets.get(request.training.path)
    if target is None or from_target_file(target) != request.training:
        raise TrustError(f"the rounds role has not signed {request.training.path!r} as the offer names it")
    if request.training.custom.kind != "training" or request.training.custom.model != body.model:
        raise RefusedError(f"{request.training.path!r} is not a training bundle of {body.model}")
    if channel_of(request.training.path) != body.channel:
        raise RefusedError(f"{request.training.path!r} is of another channel than the offer's, {body.channel!r}")
    expected = weights_path(body.channel, body.model, body.round_id)
    if request.weights.path != expected:
        raise RefusedError(f"the weights of this round stand at {expected!r}, not at {request.weights.path!r}")
    if request.weights.custom.kind != "weights" or request.weights.custom.model != body.model:
        raise RefusedError("what the offer names as weights is not called weights of its model")


def check_opted_in(targets: Targets, channel: str) -> None:
    """Raise `RefusedError` unless the offline keys let `channel` opt in to what the worker signs."""
    if not channels(targets).get(channel):
        raise RefusedError(f"the channel {channel!r} has not opted in to what the worker signs", code="not-opted-in")


def check_weights(request: OfferRequest, training_bundle: bytes, weights: bytes) -> None:
    """Hold the fetched files against the offer, and the weights against the training bundle.

    Raises:
        TrustError: a digest, a length or a chunk index differs.
        RefusedError: the weights are not those of the bundle's model, or not finite.
    """
    check_file(io.BytesIO(training_bundle), request.training)
    check_file(io.BytesIO(weights), request.weights)
    try:
        reader = BundleReader(io.BytesIO(training_bundle))
        spec = reader.verify().training
    except ProtocolError as error:
        raise RefusedError(f"the training bundle: {error}", code=error.code) from error
    if spec is None:
        raise RefusedError("the training bundle has no training section")
    check_tensors(read_tensors(weights), spec.params, spec.buffers)


def read_tensors(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a safetensors file."""
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"the weights are not a safetensors file: {error}") from error


def check_tensors(
    found: Mapping[str, np.ndarray[Any, Any]], params: tuple[TensorSpec, ...], buffers: tuple[TensorSpec, ...]
) -> None:
    """Raise `RefusedError` unless `found` holds exactly `p.*` and `b.*` of the specification, and is finite."""
    expected = {f"p.{s.name}": tuple(s.shape) for s in params} | {f"b.{s.name}": tuple(s.shape) for s in buffers}
    if set(found) != set(expected):
        odd = sorted(set(found) ^ set(expected))[0]
        raise RefusedError(f"the weights do not fit the training bundle: {odd!r}")
    for name, array in found.items():
        if array.shape != expected[name]:
            raise RefusedError(f"the weights do not fit the training bundle: {name} has shape {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RefusedError(f"the weights hold values that are not finite: {name}")


def offer_metadata(request: OfferRequest) -> Metadata[Targets]:
    """The unsigned offer."""
    return build_offer(request.body, request.training, request.weights, expires=request.expires)
