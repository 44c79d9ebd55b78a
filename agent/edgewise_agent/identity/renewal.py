"""When the device's certificate is renewed, and what follows from each answer. No I/O, no clock of its own.

    settled ─Look: due / Troubled: often enough→ asking ─Answered→ installing ─Installed→ settled, reconnects
       ▲                                        │   │ Failed            │ Failed
       │ Online                                 │   ▼                   ▼
       └────────────────────────────────────────│─ waiting (backoff with jitter) ─Look: time→ asking
                                                ▼ Failed for good (revoked, decommissioned, unknown, ...)
                                              ended ─Look: after a long time→ asking, or settled

A renewal is due when two thirds of the certificate's life are over, and when the offline-signed metadata no
longer name its intermediate. It is tried when the broker refuses the certificate, and when the broker
cannot be reached for long: the answer names the broker anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

Phase = Literal["settled", "asking", "installing", "waiting", "ended"]
Reason = Literal["lifetime", "intermediate", "refused", "unreachable"]
RENEW_AT: Final = 2 / 3
"""Part of the certificate's life after which it is renewed."""
FINAL: Final = frozenset({"device-revoked", "device-decommissioned", "device-key-unknown", "renewal-too-late"})
"""Codes of the server after which asking again is useless until somebody has acted."""
BUSY: Final = "too-many-requests"
"""The server's code where it bounds how often it is asked."""
_MAX_DOUBLINGS: Final = 32


@dataclass(frozen=True)
class Policy:
    """Seconds, and how much trouble with the broker makes the device ask."""

    minimum: float = 30.0
    maximum: float = 6 * 3600.0
    ended: float = 24 * 3600.0
    """Between two questions of a device that was told that its time is over."""
    refusals: int = 2
    """Refusals in a row: one alone may be a broker that restarts."""
    unreachable: int = 30
    """Failed connections in a row."""

    busy: float = 900.0
    """Longest wait after "too many requests": the server is well, and the whole fleet asks, as after a theft."""

    def delay(self, attempt: int, jitter: float, at_least: float = 0.0, code: str = "") -> float:
        """Wait after failure `attempt` (0 is the first); `jitter` in [0, 1) spreads a fleet over half the wait."""
        at_most = min(self.maximum, self.busy) if code == BUSY else self.maximum
        longest = min(at_most, self.minimum * 2.0 ** min(attempt, _MAX_DOUBLINGS))
        return max(at_least, longest * (0.5 + 0.5 * jitter))


@dataclass(frozen=True)
class State:
    phase: Phase = "settled"
    attempt: int = 0
    """Failures, and renewals that did not lead to the broker, in a row."""
    not_before: float = 0.0
    """Monotonic seconds before which nothing is asked."""
    refused: int = 0
    unreachable: int = 0


@dataclass(frozen=True)
class Look:
    """Time passes. `used` is the part of the certificate's life that is over, by a clock that may be wrong."""

    now: float
    used: float
    intermediate_named: bool = True


@dataclass(frozen=True)
class Troubled:
    """The broker refused this device (`refused`), or could not be reached."""

    now: float
    refused: bool


@dataclass(frozen=True)
class Online:
    """The broker accepted the certificate."""


@dataclass(frozen=True)
class Answered:
    """The server gave a certificate, and it is good."""


@dataclass(frozen=True)
class Installed:
    """The new identity is on the disk."""

    now: float
    jitter: float


@dataclass(frozen=True)
class Failed:
    """The question, or its answer, came to nothing."""

    now: float
    jitter: float
    code: str
    text: str
    at_least: float = 0.0


Event = Look | Troubled | Online | Answered | Installed | Failed


@dataclass(frozen=True)
class Ask:
    """Make the next key, unless there is one, and ask the server."""

    reason: Reason


@dataclass(frozen=True)
class Install:
    """Replace the identity on the disk."""


@dataclass(frozen=True)
class Reconnect:
    """Speak to the broker with the new identity."""


@dataclass(frozen=True)
class Tell:
    """Say how the identity stands; an empty code: well."""

    code: str = ""
    text: str = ""


@dataclass(frozen=True)
class Hasten:
    """Try the broker as often as usual (`slow` false), or only after the longest wait."""

    slow: bool


Effect = Ask | Install | Reconnect | Tell | Hasten


def begin(code: str, policy: Policy, now: float) -> State:
    """The state of an agent that starts; `code` is how the identity stood when it ended."""
    return State("ended", not_before=now + policy.ended) if code in FINAL else State()


def step(state: State, event: Event, policy: Policy) -> tuple[State, tuple[Effect, ...]]:
    """The next state and what to do. Events that do not concern a phase change nothing."""
    match event, state.phase:
        case Look(now=now) as look, "settled" | "waiting" | "ended":
            return _look(state, look, now, policy)
        case Troubled(now=now, refused=refused), "settled" | "waiting" | "ended":
            worse = replace(
                state,
                refused=state.refused + 1 if refused else state.refused,
                unreachable=0 if refused else state.unreachable + 1,
            )
            reason = _trouble(worse, policy)
            if reason and now >= state.not_before:
                return replace(worse, phase="asking"), (Ask(reason),)
            return worse, ()
        case Online(), _:
            return replace(state, refused=0, unreachable=0), ()
        case Answered(), "asking":
            return replace(state, phase="installing"), (Install(),)
        case Installed(now=now, jitter=jitter), "installing":
            # should the broker refuse this one too, the next question waits longer and longer
            wait = policy.delay(state.attempt, jitter)
            settled = State(attempt=state.attempt + 1, not_before=now + wait)
            return settled, (Tell(), Hasten(slow=False), Reconnect())
        case Failed(code=code, text=text, now=now), "asking" if code in FINAL:
            ended = State("ended", state.attempt, now + policy.ended)
            return ended, (Tell(code, text), Hasten(slow=True))
        case Failed(now=now, jitter=jitter, code=code, text=text, at_least=at_least), "asking" | "installing":
            wait = policy.delay(state.attempt, jitter, at_least, code)
            waiting = replace(state, phase="waiting", attempt=state.attempt + 1, not_before=now + wait)
            return waiting, (Tell(code, text),)
        case _:
            return state, ()


def _look(state: State, look: Look, now: float, policy: Policy) -> tuple[State, tuple[Effect, ...]]:
    reason = _due(state, look, policy)
    if now < state.not_before:
        return state, ()
    if reason is not None:
        return replace(state, phase="asking"), (Ask(reason),)
    if state.phase in ("waiting", "ended"):
        return replace(state, phase="settled", attempt=0), (Tell(), Hasten(slow=False))
    # a certificate that has proved itself for its whole wait forgives what came before it
    return replace(state, attempt=0) if state.phase == "settled" else state, ()


def _due(state: State, look: Look, policy: Policy) -> Reason | None:
    if not look.intermediate_named:
        return "intermediate"
    if look.used >= RENEW_AT:
        return "lifetime"
    return _trouble(state, policy)


def _trouble(state: State, policy: Policy) -> Reason | None:
    if state.refused >= policy.refusals:
        return "refused"
    return "unreachable" if state.unreachable >= policy.unreachable else None
