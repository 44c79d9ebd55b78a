"""What the policy knows of the fleet, and the closed vocabulary of what it may decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pending", "committed", "failed"]
RolloutStatus = Literal["running", "paused", "completed", "aborted"]


@dataclass(frozen=True, slots=True)
class Exposure:
    """A device that the rollout has assigned to its version.

    `ended_at` is when its outcome became known to the server. `requests`, `errors` and `p95_ms` are of the
    rollout's version on this device since its exposure.
    """

    exposed_at: float
    outcome: Outcome = "pending"
    ended_at: float | None = None
    reverted: bool = False
    requests: int = 0
    errors: int = 0
    p95_ms: float = 0.0
    drift_alerts: int = 0


@dataclass(frozen=True, slots=True)
class DeviceFact:
    """One device of the rollout's group.

    `available` is whether a signed bundle of the version fits the device; `held` whether a newer rollout of
    the model has it; `barred` is the code of why it gets no new version of the model, see `eligibility`.
    """

    device_id: str
    online: bool
    available: bool = True
    held: bool = False
    barred: str = ""
    exposure: Exposure | None = None


@dataclass(frozen=True, slots=True)
class RolloutState:
    """What the rollout itself remembers between two decisions.

    `gates_from`: outcomes and measurements of devices that ended before it do not count (an operator resumed).
    """

    status: RolloutStatus
    phase: int = 0
    phase_started_at: float = 0.0
    gates_from: float = 0.0


@dataclass(frozen=True, slots=True)
class AssignDevice:
    device_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StartPhase:
    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Complete:
    reason: str


@dataclass(frozen=True, slots=True)
class Pause:
    reason: str


@dataclass(frozen=True, slots=True)
class Abort:
    reason: str


@dataclass(frozen=True, slots=True)
class RevertDevice:
    device_id: str
    reason: str


Decision = AssignDevice | StartPhase | Complete | Pause | Abort | RevertDevice
