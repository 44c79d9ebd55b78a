"""When to connect, wait, subscribe and leave. No I/O, no clock, no randomness of its own.

    stopped ─Started→ connecting ─Accepted→ subscribing ─Subscribed→ online
                        ▲   │ Lost               │ Lost              │ Lost
                        │   ▼                    ▼                   ▼
                        └─ waiting (exponential backoff with jitter) ◄

`Stopped` leads from every phase to `stopped`, with a farewell where there is a connection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

Phase = Literal["stopped", "connecting", "subscribing", "online", "waiting"]
_MAX_DOUBLINGS: Final = 32


@dataclass(frozen=True)
class Policy:
    """Seconds."""

    minimum: float = 1.0
    maximum: float = 60.0
    stable_after: float = 30.0
    """A connection that lasted this long forgives earlier failures."""

    def delay(self, attempt: int, jitter: float) -> float:
        """Wait before attempt `attempt` (0 is the first); `jitter` in [0, 1) spreads a fleet over half the wait."""
        longest = min(self.maximum, self.minimum * 2.0 ** min(attempt, _MAX_DOUBLINGS))
        return longest * (0.5 + 0.5 * jitter)


@dataclass(frozen=True)
class SessionState:
    phase: Phase = "stopped"
    session: str = ""
    attempt: int = 0
    online_at: float = 0.0
    """Monotonic seconds."""


@dataclass(frozen=True)
class Started:
    session: str


@dataclass(frozen=True)
class Accepted:
    """The broker accepted the connection."""


@dataclass(frozen=True)
class Subscribed:
    """The broker acknowledged the subscriptions."""

    now: float


@dataclass(frozen=True)
class Lost:
    """The connection failed, was refused or broke."""

    now: float
    jitter: float


@dataclass(frozen=True)
class WaitOver:
    session: str
    """A new random id: a will of the old connection must not speak for this one."""


@dataclass(frozen=True)
class Stopped:
    pass


Event = Started | Accepted | Subscribed | Lost | WaitOver | Stopped


@dataclass(frozen=True)
class Connect:
    session: str


@dataclass(frozen=True)
class Subscribe:
    pass


@dataclass(frozen=True)
class Birth:
    session: str


@dataclass(frozen=True)
class TellOnline:
    pass


@dataclass(frozen=True)
class TellOffline:
    pass


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Farewell:
    """Publish `online: false`, then disconnect in order."""

    session: str


@dataclass(frozen=True)
class Drop:
    """Close a connection on which nothing was said yet."""


Effect = Connect | Subscribe | Birth | TellOnline | TellOffline | Wait | Farewell | Drop


def step(state: SessionState, event: Event, policy: Policy) -> tuple[SessionState, tuple[Effect, ...]]:
    """The next state and what to do. Events that do not concern a phase change nothing."""
    match event, state.phase:
        case Started(session=session), "stopped":
            return SessionState("connecting", session), (Connect(session),)
        case WaitOver(session=session), "waiting":
            return replace(state, phase="connecting", session=session), (Connect(session),)
        case Accepted(), "connecting":
            return replace(state, phase="subscribing"), (Subscribe(),)
        case Subscribed(now=now), "subscribing":
            return replace(state, phase="online", online_at=now), (Birth(state.session), TellOnline())
        case Lost(now=now, jitter=jitter), "connecting" | "subscribing" | "online":
            was_online = state.phase == "online"
            forgiven = was_online and now - state.online_at >= policy.stable_after
            attempt = 0 if forgiven else state.attempt
            effects: tuple[Effect, ...] = (Wait(policy.delay(attempt, jitter)),)
            return (
                SessionState("waiting", "", attempt + 1),
                (TellOffline(), *effects) if was_online else effects,
            )
        case Stopped(), "online":
            return SessionState(), (TellOffline(), Farewell(state.session))
        case Stopped(), "connecting" | "subscribing":
            return SessionState(), (Drop(),)
        case Stopped(), "waiting":
            return SessionState(), ()
        case _:
            return state, ()
