"""Danger: the server hears of an offer again and again, or not of what became of it the second time."""

from __future__ import annotations

from typing import Any

from edgewise_agent.learning.events import RoundEvents


class Kept:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def put(self, leaf: str, make: Any) -> None:
        self.told.append(make("s", len(self.told), 0.0))


def test_the_same_of_the_same_offer_is_told_once_and_another_cause_again() -> None:
    kept = Kept()
    events = RoundEvents(kept)
    away = {"reason": "metadata-unavailable"}
    forged = {"reason": "round-offer-unsigned"}
    for data in (away, away, forged, away, forged):
        events.report_once(b"offer", "round-offer-refused", "no", data)
    events.report_once(b"another", "round-offer-refused", "no", away)
    assert [event.data["reason"] for event in kept.told] == [
        "metadata-unavailable", "round-offer-unsigned", "metadata-unavailable"
    ]  # fmt: skip
