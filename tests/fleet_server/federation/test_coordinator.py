"""Danger: a federation waits for ever, closes a round with too few clients, or takes a late update in."""

from __future__ import annotations

import dataclasses

import pytest
from edgewise_server.federation.coordinator import decide
from edgewise_server.federation.facts import (
    Aggregate,
    BeginAggregation,
    FailFederation,
    FailRound,
    FederationFacts,
    FederationSettings,
    FederationSettingsError,
    OpenRound,
    Promote,
    PublishOffer,
    RoundFacts,
)
from hypothesis import given
from hypothesis import strategies as st

SETTINGS = FederationSettings(rounds=3, min_clients=2, round_timeout_s=100, straggler_s=10)


def facts(state: str | None = None, **values: object) -> FederationFacts:
    closed = int(values.pop("closed", 0))  # type: ignore[call-overload]
    failed = int(values.pop("failed", 0))  # type: ignore[call-overload]
    newest = None
    if state is not None:
        newest = RoundFacts(number=1, state=state, started_at=0.0, deadline=100.0)  # type: ignore[arg-type]
        newest = dataclasses.replace(newest, **values)  # type: ignore[arg-type]
    return FederationFacts("running", SETTINGS, newest, closed, failed)


def test_the_table() -> None:
    rows: list[tuple[FederationFacts, float, object]] = [
        (facts(), 0, OpenRound(1)),
        (facts("draft"), 10, None),
        (facts("draft"), 3600, FailRound(1, "no worker signed the offer within 3600 s")),
        (facts("draft", signing_failed="no key"), 1, FailRound(1, "the offer was not signed: no key")),
        (facts("offered"), 1, PublishOffer(1)),
        (facts("collecting", expected=3, stored=1), 50, None),
        (facts("collecting", expected=3, stored=2, last_stored_at=50), 59, None),
        (facts("aggregating"), 1, Aggregate(1)),
        (facts("closed", closed=1), 1, OpenRound(2)),
        (facts("closed", closed=3, number=3), 1, Promote("all 3 rounds are closed")),
        (facts("failed", failed=1), 1, OpenRound(2)),
        (facts("failed", failed=2, number=2), 1, FailFederation("2 rounds failed in a row")),
    ]
    for given_facts, now, expected in rows:
        assert decide(given_facts, now) == expected


def test_a_round_ends_when_all_delivered_or_the_others_are_too_slow_or_the_time_is_up() -> None:
    everyone = decide(facts("collecting", expected=2, stored=2, last_stored_at=5), 5)
    assert everyone == BeginAggregation(1, "all 2 clients have delivered")
    slow = facts("collecting", expected=3, stored=2, last_stored_at=50)
    assert isinstance(decide(slow, 60), BeginAggregation)
    uploading = facts("collecting", expected=3, stored=2, last_stored_at=50, uploading=1)
    assert decide(uploading, 99) is None
    assert isinstance(decide(uploading, 100), BeginAggregation)
    few = decide(facts("collecting", expected=3, stored=1), 100)
    assert few == FailRound(1, "the time is up: 1 clients delivered, 2 are needed")


@pytest.mark.parametrize("status", ["promoting", "finished", "failed", "stopped"])
def test_a_federation_that_is_over_decides_nothing(status: str) -> None:
    assert decide(dataclasses.replace(facts("offered"), status=status), 1e9) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{"rounds": 0}, {"min_clients": 0}, {"round_timeout_s": 0}, {"clip_norm": 0}, {"max_uploads": 0}]
)
def test_settings_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(FederationSettingsError):
        FederationSettings(**({"rounds": 1} | values))  # type: ignore[arg-type]


@given(
    st.integers(0, 10),
    st.integers(0, 10),
    st.integers(0, 5),
    st.none() | st.floats(0, 200),
    st.floats(0, 500),
)
def test_collecting_never_aggregates_below_the_minimum_and_never_outlives_its_deadline(
    expected: int, stored: int, uploading: int, last: float | None, now: float
) -> None:
    decision = decide(
        facts("collecting", expected=expected, stored=stored, uploading=uploading, last_stored_at=last), now
    )
    if isinstance(decision, BeginAggregation):
        assert stored >= SETTINGS.min_clients
    if now >= 100:
        assert isinstance(decision, BeginAggregation | FailRound)
