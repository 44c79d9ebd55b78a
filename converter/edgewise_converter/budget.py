"""The verdict over a converted model: parity with its source, and the profile's budget. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from edgewise_profiles.schema import Precision, Profile

from edgewise_converter.quality import Quality
from edgewise_converter.report import Check, at_least, at_most

_KIB: Final = 1024


class Parity(NamedTuple):
    """How near a form must come to its source, relative to the source's output range."""

    max_error: float
    rms_error: float
    agreement: float


PARITY: Final[dict[Precision, Parity]] = {
    # Both sides compute in float32, in another order.
    "float32": Parity(max_error=1e-4, rms_error=2e-5, agreement=0.995),
    # A half has 11 significant bits: about 5e-4 a rounding, and a few roundings a layer.
    "float16": Parity(max_error=2e-2, rms_error=5e-3, agreement=0.99),
    # One int8 step is 1/255 of the range; the worst element may be off by many, not the mean.
    "int8": Parity(max_error=0.25, rms_error=0.05, agreement=0.95),
}


def judge(
    profile: Profile,
    precision: Precision,
    quality: Quality,
    *,
    model_size: int,
    latency_ms: float,
    latency_binding: bool,
) -> tuple[Check, ...]:
    """Every check of a converted model.

    Args:
        profile: whose budget it is.
        precision: of the model.
        quality: measured on held-out data.
        model_size: of the model file, bytes.
        latency_ms: median of one sample on one thread of this host, milliseconds.
        latency_binding: whether this host is the profile's hardware.
    """
    parity, budget = PARITY[precision], profile.budget
    checks = [
        at_most("largest output error", quality.max_error, parity.max_error),
        at_most("rms output error", quality.rms_error, parity.rms_error),
    ]
    if quality.agreement is not None:
        checks.append(at_least("agreement with the source", quality.agreement, parity.agreement))
    if quality.accuracy is not None and quality.accuracy_float is not None:
        drop = round(100 * (quality.accuracy_float - quality.accuracy), 9)
        checks.append(at_most("accuracy lost", drop, budget.accuracy_drop, "points"))
    checks.append(at_most("model size", model_size / _KIB, budget.model_size_kib, "KiB"))
    checks.append(at_most("median latency", latency_ms, budget.latency_ms, "ms", binding=latency_binding))
    return tuple(checks)


def passes(checks: tuple[Check, ...]) -> bool:
    """Whether every check that binds holds."""
    return all(check.passed for check in checks if check.binding)
