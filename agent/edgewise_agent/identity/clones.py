"""Another machine uses this identity: the broker cuts this one off in its favour, or the server says so. Pure.

An MQTT 5 broker may end a session with the reason 0x8E when the same client id connects elsewhere (section 4.13). An
agent that restarts quickly never hears of its own taking over: the one that was cut off is dead. So a
process that hears it again and again is not alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CODE: Final = "cloned-identity"
TEXT: Final = (
    "another machine uses this device's identity, and they take turns at the broker. "
    "Find the copy (a cloned card or disk image), and replace the identity of one of them"
)


@dataclass(frozen=True)
class Policy:
    """How often within how many seconds; one takeover alone may be the server's, as when it ends a session."""

    takeovers: int = 3
    within: float = 900.0
    forget: float = 3600.0
    """Quiet after which the copy is held to be gone."""


@dataclass(frozen=True)
class Takeovers:
    """Monotonic times of the last takeovers, and whether they mean a clone."""

    at: tuple[float, ...] = ()
    cloned: bool = False


def taken_over(state: Takeovers, now: float, policy: Policy) -> Takeovers:
    """Another connection has taken this one's place."""
    at = (*(t for t in state.at if now - t <= policy.within), now)[-policy.takeovers :]
    return Takeovers(at, state.cloned or len(at) >= policy.takeovers)


def told(now: float) -> Takeovers:
    """The server has seen two machines take turns; not every broker says that it ends a session for another."""
    return Takeovers((now,), cloned=True)


def pass_time(state: Takeovers, now: float, policy: Policy) -> Takeovers:
    """Time passes: after enough quiet nothing is held against the identity."""
    if state.at and now - state.at[-1] > policy.forget:
        return Takeovers()
    return state
