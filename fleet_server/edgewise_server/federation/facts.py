"""What the coordinator knows of a federation, and the closed vocabulary of what it may decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

FederationStatus = Literal["running", "promoting", "finished", "failed", "stopped"]
RoundState = Literal["draft", "offered", "collecting", "aggregating", "closed", "failed"]
ClientState = Literal["waiting", "uploading", "stored", "aggregated", "refused"]

OPEN_ROUNDS: Final[frozenset[str]] = frozenset({"draft", "offered", "collecting", "aggregating"})
MAX_ROUNDS: Final = 10_000
MAX_ROUND_S: Final = 6 * 24 * 3600.0
"""Longest round: with the wait for its signature, an offer lives less than the seven days that a worker signs for."""
MAX_CLIENTS: Final = 1_000
"""Clients whose updates one round takes."""


class FederationSettingsError(ValueError):
    """A federation's settings contradict each other or exceed a bound."""


@dataclass(frozen=True, slots=True)
class FederationSettings:
    """How a federation trains and waits. Durations are seconds."""

    rounds: int
    min_clients: int = 2
    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.05
    mu: float = 0.0
    max_steps: int = 2_000
    seed: int = 0
    strategy: str = "fedavg"
    round_timeout_s: float = 300.0
    straggler_s: float | None = None
    """Wait for slower clients once `min_clients` have delivered; None is a quarter of the timeout."""
    clip_norm: float | None = None
    """Longest L2 norm of a client's change of the parameters; longer ones are scaled down to it."""
    max_uploads: int = 4
    """Updates that are uploaded at the same time."""
    sign_timeout_s: float = 3600.0
    """Longest wait for the worker to sign an offer."""
    max_failed_rounds: int = 2
    """Failed rounds in a row after which the federation has failed."""

    def __post_init__(self) -> None:
        checks = {
            "rounds": 1 <= self.rounds <= MAX_ROUNDS,
            "min_clients": 1 <= self.min_clients <= MAX_CLIENTS,
            "round_timeout_s": 0 < self.round_timeout_s <= MAX_ROUND_S,
            "straggler_s": self.straggler_s is None or self.straggler_s >= 0,
            "clip_norm": self.clip_norm is None or self.clip_norm > 0,
            "max_uploads": 1 <= self.max_uploads <= 64,
            "max_failed_rounds": 1 <= self.max_failed_rounds <= 100,
        }
        wrong = [name for name, right in checks.items() if not right]
        if wrong:
            raise FederationSettingsError(f"{wrong[0]} {getattr(self, wrong[0])!r} is out of range")

    @property
    def straggler(self) -> float:
        return self.round_timeout_s / 4 if self.straggler_s is None else self.straggler_s


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """The newest round. `expected` are the devices that were asked and are online."""

    number: int
    state: RoundState
    started_at: float
    deadline: float | None = None
    expected: int = 0
    stored: int = 0
    uploading: int = 0
    last_stored_at: float | None = None
    signing_failed: str = ""
    """Why the worker could not sign the offer, once it said so."""


@dataclass(frozen=True, slots=True)
class FederationFacts:
    """`closed` rounds have a result; `failed_in_a_row` are the newest ones that have none."""

    status: FederationStatus
    settings: FederationSettings
    newest: RoundFacts | None = None
    closed: int = 0
    failed_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Draft round `number` and ask the worker to sign its offer."""

    number: int


@dataclass(frozen=True, slots=True)
class PublishOffer:
    """Retain what the signed offer names, then the offer, and take updates."""

    number: int


@dataclass(frozen=True, slots=True)
class BeginAggregation:
    """Take no more updates."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Compute the round's result and close it."""

    number: int


@dataclass(frozen=True, slots=True)
class FailRound:
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Promote:
    """Ask the worker to judge, convert and sign the result."""

    reason: str


@dataclass(frozen=True, slots=True)
class FailFederation:
    reason: str


Decision = OpenRound | PublishOffer | BeginAggregation | Aggregate | FailRound | Promote | FailFederation
