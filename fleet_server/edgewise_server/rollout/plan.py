"""What an operator asks of a rollout: phases, gates and limits. Values that check themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MAX_PHASES: Final = 20
MAX_SOAK_S: Final = 30 * 24 * 3600.0

OnBreach = Literal["abort", "pause"]


class PlanError(ValueError):
    """A plan contradicts itself or exceeds a bound."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Expose up to `percent` of the cohort, at least `min_devices`, then watch for `soak_s` seconds."""

    percent: int
    min_devices: int = 1
    soak_s: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.percent <= 100:
            raise PlanError(f"a phase of {self.percent} % is out of range: 1 to 100")
        if not 0 <= self.min_devices <= 1_000_000:
            raise PlanError(f"min_devices {self.min_devices} is out of range")
        if not 0 <= self.soak_s <= MAX_SOAK_S:
            raise PlanError(f"soak_s {self.soak_s} is out of range: 0 to {MAX_SOAK_S:.0f}")

    def allowed(self, cohort: int) -> int:
        """Most devices that this phase may expose in a cohort of that size."""
        return min(cohort, max(cohort * self.percent // 100, self.min_devices))


@dataclass(frozen=True, slots=True)
class Gates:
    """What stops a rollout. Ratios are in 0 to 1, latencies in milliseconds.

    `max_failed_ratio` and `min_reporting` speak of installs; the others of the model's health, from what
    the exposed devices measured since their exposure. `on_breach` says whether a breach reverts the
    exposed devices (`abort`) or waits for the operator (`pause`).
    """

    max_failed_ratio: float = 0.0
    max_error_ratio: float = 0.05
    max_p95_ms: float | None = None
    max_drift_alerts: int | None = None
    min_reporting: float = 0.0
    """Share of the exposed devices that must have ended before a phase may pass."""
    min_requests: int = 20
    """Fewer requests than this say nothing about errors and latency."""
    on_breach: OnBreach = "abort"

    def __post_init__(self) -> None:
        for name in ("max_failed_ratio", "max_error_ratio", "min_reporting"):
            if not 0 <= getattr(self, name) <= 1:
                raise PlanError(f"{name} {getattr(self, name)} is out of range: 0 to 1")
        if self.max_p95_ms is not None and not self.max_p95_ms > 0:
            raise PlanError("max_p95_ms must be positive")
        if self.max_drift_alerts is not None and self.max_drift_alerts < 0:
            raise PlanError("max_drift_alerts must not be negative")
        if self.on_breach not in ("abort", "pause"):
            raise PlanError(f"on_breach is abort or pause, not {self.on_breach!r}")


@dataclass(frozen=True, slots=True)
class Plan:
    """One rollout's plan. `rollout_id` seeds the canary's choice."""

    rollout_id: str
    phases: tuple[Phase, ...]
    gates: Gates = Gates()
    confirm_within_s: int = 600
    max_concurrent: int = 100
    """Exposed devices that have not ended yet."""
    rate_per_minute: int | None = None
    """New exposures in any 60 seconds."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.phases) <= MAX_PHASES:
            raise PlanError(f"a rollout has 1 to {MAX_PHASES} phases")
        percents = [phase.percent for phase in self.phases]
        if percents != sorted(percents):
            raise PlanError("the phases' percentages must not fall")
        if self.max_concurrent < 1:
            raise PlanError("max_concurrent must be at least 1")
        if self.rate_per_minute is not None and self.rate_per_minute < 1:
            raise PlanError("rate_per_minute must be at least 1")
