"""The gate: a metric against an absolute target, and what conversion may cost. Pure.

`edgewise gate` and the search judge by the same functions.
"""

from __future__ import annotations

from edgewise_converter.errors import MetricError
from edgewise_converter.metrics.score import Score
from edgewise_converter.report import Check, at_least, at_most


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


def score_checks(score: Score, *, accuracy_drop: float, min_metric: float | None = None) -> tuple[Check, ...]:
    """What a converted model's score must hold.

    Args:
        score: of the converted model.
        accuracy_drop: points of 100 that conversion may cost.
        min_metric: absolute target for the metric in [0, 1], if there is one.
    """
    name = "metric lost" if score.labelled else "agreement lost"
    checks = [at_most(f"{name} ({score.name})", score.drop, accuracy_drop, "points")]
    if min_metric is not None:
        checks.append(target_check(score.name, score.value, min_metric))
    return tuple(checks)


def float_check(score: Score, min_metric: float) -> Check:
    """Whether the float source itself reaches the target: where it does not, no conversion can be asked to."""
    return target_check(f"{score.name} of the float model", score.float_value, min_metric)


def sentence(check: Check) -> str:
    """The verdict over a target, in one sentence."""
    if check.passed:
        return f"passed: {check.name} is {check.value:.4f}, at least {check.bound:g} is asked for"
    return f"refused: {check.name} is {check.value:.4f}, {check.excess:.4f} under the target {check.bound:g}"
