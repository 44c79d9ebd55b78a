"""The gate: a metric against an absolute target, for `edgewise gate` and for `convert --min-metric`. Pure."""

from __future__ import annotations

from edgewise_converter.checks import Check, at_least
from edgewise_converter.errors import MetricError


def target_check(metric: str, value: float, target: float) -> Check:
    """Whether a metric reaches its target; a value that is not a number does not.

    Args:
        metric: its name.
        value: what was measured.
        target: the least that passes, in [0, 1].

    Raises:
        MetricError: the target is not in [0, 1].
    """
    if not 0.0 <= target <= 1.0:
        raise MetricError(f"a target is between 0 and 1; {target:g} was given (85 % is 0.85)")
    return at_least(metric, value, target)


def sentence(check: Check) -> str:
    """The verdict over a target, in one sentence."""
    if check.passed:
        return f"passed: {check.name} is {check.value:.4f}, at least {check.bound:g} is asked for"
    return f"refused: {check.name} is {check.value:.4f}, {check.excess:.4f} under the target {check.bound:g}"
