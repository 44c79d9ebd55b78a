"""Whether what judges a model's forms is enough to tell a loss as small as the one that is allowed."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from edgewise_converter.metrics.score import Score
from edgewise_converter.sources.model import Model

FEW: Final = 100
"""Samples below which R squared, which no single one decides, is not told to a point."""
_CLASSES: Final = "top-1"


def doubts(model: Model, score: Score | None, allowed_points: float) -> tuple[str, ...]:
    """Notes on too few samples or labels: what one of them weighs, or how uncertain the loss is. Pure.

    Args:
        model: what was judged.
        score: of the form that was chosen, or of another; None where there is none.
        allowed_points: points of 100 that may be lost; 0 allows nothing, and asks for no note.
    """
    if score is None or allowed_points <= 0:
        return ()
    if not score.labelled and all(o.basis == "r-squared" for o in score.outputs):
        few = score.samples < FEW
        return (f"only {score.samples} samples judge the forms: a difference of a point is chance",) if few else ()
    count, what = _deciding(model, score)
    if (weight := 100 / max(count, 1)) > allowed_points:
        return (
            f"only {what} judge the forms: a single one weighs {weight:.2g} points, and {allowed_points:g} may be lost",
        )
    changed, error = _uncertain(score, count)
    if error > allowed_points:
        return (
            f"{changed} of {count} samples change their class: the loss of {max(score.drop, 0.0):.2f} points is "
            f"uncertain by {error:.2g} (one standard error), {allowed_points:g} may be lost; more samples tell better",
        )
    return ()


def _deciding(model: Model, score: Score) -> tuple[int, str]:
    """How many samples or labels the metric's smallest step depends on, and what they are."""
    if not score.labelled or model.y is None:
        return score.samples, f"{score.samples} samples"
    labels = len(model.y)
    told = f"{labels} labels" if labels == score.samples else f"{labels} labels of {score.samples} samples"
    if score.name == "top1":
        return labels, told
    rarer = int(np.unique(model.y, return_counts=True)[1].min())
    return rarer, f"{rarer} labels of the rarer class, of {told},"


def _uncertain(score: Score, count: int) -> tuple[int, float]:
    """How many samples the form puts into another class than the source, and the loss's standard error in points.

    Both are asked the same samples, so that those on which they agree say nothing (McNemar 1947).
    """
    if score.labelled and score.name != "top1":
        return 0, 0.0
    changed = max((1 - o.agreement for o in score.outputs if o.basis == _CLASSES), default=0.0)
    spread = max(changed - (score.drop / 100) ** 2, 0.0)
    return round(changed * count), 100 * math.sqrt(spread / count)
