"""What happens to rounds, told through the outbox as events of kind `round`."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from edgewise_protocol.bounds import MAX_TEXT_CHARS
from edgewise_protocol.messages import Event
from edgewise_protocol.rounds import Offer

from edgewise_agent.observe.outbox import Outbox

_MAX_REMEMBERED: Final = 64


class RoundEvents:
    """Puts one event for each thing that happens to a round."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._told: list[bytes] = []

    def report(self, code: str, text: str, data: dict[str, Any] | None = None, offer: Offer | None = None) -> None:
        """Tell it, with the round's id where an offer is known."""
        about: dict[str, Any] = dict(data or {})
        if offer is not None:
            about |= {"round_id": offer.body.round_id, "federation": offer.body.federation}
        self._outbox.put(
            "event",
            lambda stream, seq, at: Event(
                stream=stream, seq=seq, at=at, kind="round", code=code, text=text[:MAX_TEXT_CHARS], data=about
            ),
        )

    def report_once(
        self,
        payload: bytes,
        code: str,
        text: str,
        data: dict[str, Any] | None = None,
        offer: Offer | None = None,
    ) -> None:
        """Tell it, unless the same has been told of the same offer: retained ones arrive at every connection."""
        reason = str((data or {}).get("reason", ""))
        digest = hashlib.sha256(payload + f"{code} {reason}".encode()).digest()
        if digest not in self._told:
            self._told = [*self._told[-_MAX_REMEMBERED:], digest]
            self.report(code, text, data, offer)
