"""The coordinator of federated rounds: a pure function of facts and clock.

    draft ─► offered ─► collecting ─► aggregating ─► closed ─► next round, or promotion
      └─────────┴───────────┴──────────────┴───────► failed ─► next round, or failure

Level-triggered, so it may be asked twice. One decision at a time: its effect changes the facts.
"""

from __future__ import annotations

from edgewise_server.federation.facts import (
    Aggregate,
    BeginAggregation,
    Decision,
    FailFederation,
    FailRound,
    FederationFacts,
    FederationSettings,
    OpenRound,
    Promote,
    PublishOffer,
    RoundFacts,
)


def decide(facts: FederationFacts, now: float) -> Decision | None:
    """What to do next; None when there is only waiting to do."""
    if facts.status != "running":
        return None
    newest = facts.newest
    if newest is None:
        return OpenRound(1)
    match newest.state:
        case "draft":
            return _draft(facts.settings, newest, now)
        case "offered":
            return PublishOffer(newest.number)
        case "collecting":
            return _collecting(facts.settings, newest, now)
        case "aggregating":
            return Aggregate(newest.number)
        case "closed" | "failed":
            return _after(facts, newest)


def _draft(settings: FederationSettings, newest: RoundFacts, now: float) -> Decision | None:
    if newest.signing_failed:
        return FailRound(newest.number, f"the offer was not signed: {newest.signing_failed}")
    if now >= newest.started_at + settings.sign_timeout_s:
        return FailRound(newest.number, f"no worker signed the offer within {settings.sign_timeout_s:.0f} s")
    return None


def _collecting(settings: FederationSettings, newest: RoundFacts, now: float) -> Decision | None:
    enough = newest.stored >= settings.min_clients
    if enough and newest.stored >= newest.expected:
        return BeginAggregation(newest.number, f"all {newest.stored} clients have delivered")
    idle = newest.last_stored_at is not None and now >= newest.last_stored_at + settings.straggler
    if enough and idle and newest.uploading == 0:
        return BeginAggregation(newest.number, f"{newest.stored} clients have delivered, and no other came in time")
    if newest.deadline is not None and now >= newest.deadline:
        if enough:
            return BeginAggregation(newest.number, f"the time is up, with {newest.stored} clients")
        return FailRound(
            newest.number, f"the time is up: {newest.stored} clients delivered, {settings.min_clients} are needed"
        )
    return None


def _after(facts: FederationFacts, newest: RoundFacts) -> Decision:
    if facts.failed_in_a_row >= facts.settings.max_failed_rounds:
        return FailFederation(f"{facts.failed_in_a_row} rounds failed in a row")
    if facts.closed >= facts.settings.rounds:
        return Promote(f"all {facts.closed} rounds are closed")
    return OpenRound(newest.number + 1)
