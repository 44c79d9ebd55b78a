"""One renewal, step by step: keep the next key, ask for a nonce, prove the present key, verify, commit.

Every step may be interrupted. A lost answer is harmless: the same next key is asked for again, and the
server keeps the present one registered until the new certificate is seen in use.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from edgewise_protocol.renewal import (
    MAX_CA_CERTIFICATES,
    FleetCaPins,
    NonceRequest,
    NonceResponse,
    RenewRequest,
    RenewResponse,
    signed_bytes,
)

from edgewise_agent.errors import IdentityError
from edgewise_agent.identity.certificates import (
    Key,
    check_certificate,
    load_key,
    make_csr,
    public_pem,
    root_sha256,
    sign,
)
from edgewise_agent.identity.exchange import ask
from edgewise_agent.identity.identity import (
    KEY_FILE,
    Card,
    Identity,
    Renewed,
    finish_renewal,
    keep_renewed,
    load_identity,
    pending_key,
)

NONCE_PATH: Final = "/api/v1/renew/nonce"
PATH: Final = "/api/v1/renew"

log = logging.getLogger(__name__)


def request_renewal(identity: Identity, pins: FleetCaPins) -> None:
    """Get a certificate for the next key, verify it, and commit to it on the disk.

    Args:
        pins: what the offline-signed metadata say of the fleet's CA, as far as this device has heard.

    Raises:
        ServerRefusedError, ServerUnreachableError: the server does not give one.
        IdentityError: what it gives is not good. StorageError: it cannot be kept.
    """
    card, folder = identity.card, identity.folder
    present = load_key((folder / KEY_FILE).read_bytes())
    following = load_key(pending_key(folder))
    question = NonceRequest(device_id=card.device_id)
    nonce = ask(card.server_url, NONCE_PATH, identity.fleet_ca, question, NonceResponse).nonce
    request = _request(card.device_id, nonce, present, following)
    answer = ask(card.server_url, PATH, identity.fleet_ca, request, RenewResponse)
    if (answer.device_id, answer.channel) != (card.device_id, card.channel):
        raise IdentityError(f"the server renews {answer.device_id} in {answer.channel}; this is {card.device_id}")
    _check_way(card, answer)
    fleet_ca = _accepted_ca(identity, answer.fleet_ca, pins)
    now = datetime.now(UTC)
    validity = check_certificate(answer.certificate_pem, fleet_ca, following, card.device_id, now, allow_expired=True)
    if validity.ends <= identity.validity.begins:
        raise IdentityError("the renewed certificate ended before the present one began")
    if validity.ends <= now:
        log.warning("the renewed certificate has ended by this device's clock: is the clock right?")
    left = _left(identity, validity.intermediate_sha256)
    renewed = msgspec.structs.replace(card, broker=answer.broker, server_url=answer.server_url, left=left)
    keep_renewed(folder, Renewed(card=renewed, certificate_pem=answer.certificate_pem, fleet_ca=fleet_ca))


def install_renewal(state: Path) -> Identity:
    """Carry out what was committed to; returns the identity that holds now.

    Raises:
        StorageError, IdentityError: it cannot be done.
    """
    finish_renewal(state)
    return load_identity(state, datetime.now(UTC))


def _request(device_id: str, nonce: str, present: Key, following: Key) -> RenewRequest:
    csr = make_csr(following)
    return RenewRequest(
        device_id=device_id,
        nonce=nonce,
        csr_pem=csr,
        public_key_pem=public_pem(present),
        signature=sign(present, signed_bytes(device_id, nonce, csr)),
    )


def _check_way(card: Card, answer: RenewResponse) -> None:
    """No answer takes the encryption away: without it, whoever answers as the broker is the broker."""
    if card.broker.tls and not answer.broker.tls:
        raise IdentityError(f"the server names a broker without TLS, {answer.broker.host}; the device's had it")
    if card.server_url.startswith("https:") and not answer.server_url.startswith("https:"):
        raise IdentityError(f"the server names an address without TLS for itself: {answer.server_url[:200]}")


def _accepted_ca(identity: Identity, offered: str, pins: FleetCaPins) -> str:
    """The fleet's root: the present one, or another that the offline keys stand for. A server alone replaces none."""
    if root_sha256(offered) == root_sha256(identity.fleet_ca):
        return identity.fleet_ca
    if root_sha256(offered) in pins.roots:
        return offered
    raise IdentityError("the server answers with another CA root, which the fleet's offline keys do not name")


def _left(identity: Identity, offered: str) -> tuple[str, ...]:
    """The intermediates to leave behind, where the server issues by `offered` now.

    An intermediate is replaced because its key may be stolen. Who has that key can still answer in the server's name.
    """
    left, present = identity.card.left, identity.validity.intermediate_sha256
    if offered in left:
        raise IdentityError("the server answers by an intermediate that was replaced before: it is not the fleet's")
    return left if offered == present else (*left, present)[-MAX_CA_CERTIFICATES:]
