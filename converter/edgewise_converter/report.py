"""What a conversion found: the checks, the verdict, and the table that says by how much.

The report lies beside the bundle and holds what a bundle must not: times, the host, latencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from edgewise_converter.hardware import Host
from edgewise_converter.quality import Quality

TABLE_HEADER: Final = ("check", "measured", "bound", "over by", "verdict")


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One bound, and what was measured against it."""

    name: str
    value: float
    bound: float
    passed: bool
    sense: Literal["at most", "at least"]
    unit: str = ""
    binding: bool = True
    """A check that does not bind is told, and refuses nothing."""

    @property
    def excess(self) -> float:
        """By how much the bound is missed, in the check's unit; 0 where it holds."""
        return max(0.0, self.value - self.bound if self.sense == "at most" else self.bound - self.value)


def at_most(name: str, value: float, bound: float, unit: str = "", *, binding: bool = True) -> Check:
    """A check that a value, which must be a number, does not exceed its bound."""
    return Check(
        name=name, value=value, bound=bound, passed=value <= bound, sense="at most", unit=unit, binding=binding
    )


def at_least(name: str, value: float, bound: float, unit: str = "") -> Check:
    """A check that a value, which must be a number, reaches its bound."""
    return Check(name=name, value=value, bound=bound, passed=value >= bound, sense="at least", unit=unit)


class BundleReport(msgspec.Struct, frozen=True, kw_only=True):
    """One conversion for one profile. `path` is the bundle's file name, empty if it was refused."""

    model: str
    version: int
    path: str
    sha256: str
    size_bytes: int
    """Of the bundle."""
    model_size_bytes: int
    profile: str
    profile_sha256: str
    format: str
    precision: str
    engine: str
    engine_version: str
    quality: Quality
    latency_ms: float
    latency_binding: bool
    checks: tuple[Check, ...]
    passed: bool
    run: str
    host: Host
    seconds: dict[str, float]
    """Wall clock of each stage; a form shared with another profile costs the first one."""
    created_at: str
    """UTC, ISO 8601."""

    @property
    def accuracy(self) -> float | None:
        """Share of right classes on held-out data."""
        return self.quality.accuracy

    @property
    def accuracy_float(self) -> float | None:
        """The source's."""
        return self.quality.accuracy_float

    @property
    def agreement(self) -> float | None:
        """Share of samples on which the converted model and the source agree."""
        return self.quality.agreement

    def misses(self) -> tuple[str, ...]:
        """What refuses the bundle: each bound that binds and is missed, and by how much."""
        return misses(self.checks)

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """The checks as rows under `TABLE_HEADER`."""
        return [_row(check) for check in self.checks]


def misses(checks: Sequence[Check]) -> tuple[str, ...]:
    """Each bound that binds and is missed, and by how much."""
    return tuple(
        f"{name} is {value}, {bound} are allowed, over by {over}"
        for check, (name, value, bound, over, _) in ((check, _row(check)) for check in checks)
        if check.binding and not check.passed
    )


def _row(check: Check) -> tuple[str, str, str, str, str]:
    unit = f" {check.unit}" if check.unit else ""
    verdict = "passed" if check.passed else "missed" if check.binding else "missed, does not bind here"
    over = f"{_number(check.excess)}{unit}" if not check.passed else ""
    return (
        check.name,
        f"{_number(check.value)}{unit}",
        f"{check.sense} {_number(check.bound)}{unit}",
        over,
        verdict,
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def encode_report(report: BundleReport) -> bytes:
    """JSON of a report, with the figures that the command line shows at the top level too."""
    return (
        msgspec.json.format(
            msgspec.json.encode(
                {
                    **msgspec.to_builtins(report),
                    "accuracy": report.accuracy,
                    "accuracy_float": report.accuracy_float,
                    "agreement": report.agreement,
                },
                order="sorted",
            ),
            indent=1,
        )
        + b"\n"
    )
