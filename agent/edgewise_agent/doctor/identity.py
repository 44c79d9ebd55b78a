"""The identity, its certificate, and the clock that both are read by."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from edgewise_agent.doctor.check import Check, fail, ok, warn
from edgewise_agent.errors import AgentError, NotEnrolledError, code_of
from edgewise_agent.identity.identity import Card, Identity, inspect_identity, read_card
from edgewise_agent.identity.standing import Standing, read_standing
from edgewise_agent.trust.clock import TOLERANCE_S, kept_floor
from edgewise_agent.words import words_for

_RENEWED_AT = 2 / 3
"""Part of its life after which a certificate is renewed."""


@dataclass(frozen=True)
class Identities:
    card: Card | None
    identity: Identity | None
    code: str = ""
    problem: str = ""
    standing: Standing = field(default_factory=Standing)


@dataclass(frozen=True)
class Clock:
    """Epoch seconds."""

    now: float
    floor: float
    problem: str = ""


def look(state: Path, now: datetime) -> Identities:
    """Read the identity; changes nothing."""
    card: Card | None = None
    try:
        card = read_card(state)
        identity = inspect_identity(state, now)
        return Identities(card, identity, standing=read_standing(state))
    except AgentError as error:
        return Identities(card, None, code_of(error), str(error))


def judge(found: Identities, now: datetime) -> tuple[Check, ...]:
    """Pure."""
    if found.identity is None or found.card is None:
        code = found.code or NotEnrolledError.code
        return (fail("identity", found.problem, code=code),)
    card = found.card
    checks = [
        ok("identity", f"device {card.device_id} in channel {card.channel}; the key fits the certificate"),
        _certificate(found.identity, now),
    ]
    if found.standing.code:
        words = words_for(found.standing.code)
        checks.append(
            fail("standing", f"{words.meaning} ({found.standing.text[:300]})", code=found.standing.code),
        )
    return tuple(checks)


def _certificate(identity: Identity, now: datetime) -> Check:
    validity = identity.validity
    ends = validity.ends.astimezone(UTC).isoformat(timespec="seconds")
    used = validity.used(now)
    if used < 0:
        begins = validity.begins.astimezone(UTC).isoformat(timespec="seconds")
        return fail("certificate", f"it holds only from {begins} on: the clock is wrong", code="clock-behind")
    if used >= 1:
        return fail(
            "certificate",
            f"it expired at {ends}; the agent renews it as soon as the server can be reached",
            "let the agent run with a connection to the server; after the grace period the device must enrol anew",
            "renewal",
        )
    if used > _RENEWED_AT + 0.1:
        return warn(
            "certificate",
            f"it should have been renewed by now; it expires at {ends}",
            "see below whether the server can be reached",
            "renewal",
        )
    return ok("certificate", f"it leads to the fleet's root and holds until {ends}")


def look_at_clock(state: Path, identity: Identity | None, now: float) -> Clock:
    floor, problem = kept_floor(state / "clock")
    begins = identity.certificate_from.timestamp() if identity is not None else 0.0
    return Clock(now, max(floor, begins), problem)


def judge_clock(clock: Clock) -> Check:
    """Pure."""
    says = datetime.fromtimestamp(clock.now, UTC).isoformat(timespec="seconds")
    if clock.now + TOLERANCE_S < clock.floor:
        past = datetime.fromtimestamp(clock.floor, UTC).isoformat(timespec="seconds")
        return fail("clock", f"it says {says}, but it was {past} before: nothing is installed", code="clock-behind")
    if clock.problem:
        return warn("clock", f"{says}; {clock.problem}", code="state-damaged")
    return ok("clock", f"it says {says}, not before what is known to be past")
