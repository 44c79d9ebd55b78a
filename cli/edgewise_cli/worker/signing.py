"""The job `sign-offer`: check, sign with the offers key, hand in."""

from __future__ import annotations

from datetime import UTC, datetime

from edgewise_protocol.bounds import MAX_BUNDLE_BYTES, MAX_UPDATE_BYTES
from edgewise_protocol.targets import OFFERS, ROUNDS

from edgewise_cli.client import segment
from edgewise_cli.keys.ceremony import encode, sign
from edgewise_cli.worker.context import Job, Result, WorkerContext
from edgewise_cli.worker.offers import check_names, check_weights, offer_metadata, parse_request


def sign_offer(context: WorkerContext, job: Job) -> Result:
    """Sign one round's offer, if it may be signed.

    Raises:
        RefusedError, TrustError: it may not.
    """
    request = parse_request(job["payload"])
    context.repository.refresh()
    targets = context.repository.targets().signed
    rounds = context.repository.role(ROUNDS).signed
    check_names(request, targets, rounds, datetime.now(UTC))
    training = context.fetch(request.training.sha256, min(request.training.length + 1, MAX_BUNDLE_BYTES))
    weights = context.fetch(request.weights.sha256, min(request.weights.length + 1, MAX_UPDATE_BYTES))
    check_weights(request, training, weights)
    metadata = sign(offer_metadata(request), context.keys.signers(OFFERS))
    context.client.put_bytes(
        f"/federations/{segment(request.federation)}/rounds/{request.number}/offer", encode(metadata)
    )
    context.say(f"signed the offer of round {request.number} of {request.federation} ({request.body.round_id})")
    return {"round_id": request.body.round_id}
