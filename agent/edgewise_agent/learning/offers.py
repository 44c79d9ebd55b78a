"""Which offers concern this device. No I/O."""

from __future__ import annotations

import msgspec
from edgewise_protocol.errors import StaleOfferError
from edgewise_protocol.rounds import Offer

from edgewise_agent.learning.memory import Newest


class _Asked(msgspec.Struct):
    devices: list[str] = []


class _Signed(msgspec.Struct):
    edgewise: _Asked


class _Envelope(msgspec.Struct):
    signed: _Signed


def asks_others(payload: bytes, device_id: str) -> bool:
    """Whether the offer itself says that it asks other devices.

    Nothing is trusted here: not to take part is always allowed, and needs no event.
    """
    try:
        devices = msgspec.json.decode(payload, type=_Envelope).signed.edgewise.devices
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return False
    return bool(devices) and device_id not in devices


def supersedes(offer: Offer, before: Offer) -> bool:
    """Whether an offer is a later round of the federation whose round a device is busy with."""
    return offer.body.federation == before.body.federation and offer.body.number > before.body.number


def check_number(offer: Offer, newest: Newest | None) -> None:
    """Raise `StaleOfferError` for an earlier round than the newest taken up under the same keys."""
    if newest is not None and newest.keys == offer.keys and offer.body.number < newest.number:
        raise StaleOfferError(
            f"the offer is of round {offer.body.number} of {offer.body.federation}; "
            f"round {newest.number} was taken up before"
        )
