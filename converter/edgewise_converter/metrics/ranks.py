"""The area under the ROC curve from ranks. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import MetricError


def auc(scores: NDArray[Any], y: NDArray[Any]) -> float:
    """The probability that a positive sample has the higher score than a negative one; ties count one half.

    The Mann-Whitney U statistic over its largest value (Mann and Whitney 1947; Hanley and McNeil 1982), from
    average ranks. A score that is NaN or infinite is ranked as wrong as can be: below all for a positive sample,
    above all for a negative one.

    Args:
        scores: shape (N,), larger is more positive.
        y: shape (N,), 0 or 1.

    Raises:
        MetricError: `y` holds anything else, or only one class.
    """
    labels = binary(y)
    if len(scores) != len(labels):
        raise MetricError(f"there are {len(scores)} scores and {len(labels)} labels")
    positive = labels == 1
    values = np.asarray(scores, np.float64).copy()
    broken = ~np.isfinite(values)
    values[broken] = np.where(positive[broken], -np.inf, np.inf)
    count_1, count_0 = int(positive.sum()), int((~positive).sum())
    rank_sum = float(average_ranks(values)[positive].sum())
    return (rank_sum - count_1 * (count_1 + 1) / 2) / (count_1 * count_0)


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, shape (N,); equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def binary(y: NDArray[Any]) -> NDArray[np.int64]:
    """Labels as int64, shape (N,).

    Raises:
        MetricError: they are not 0 and 1, or not both are there.
    """
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        raise MetricError(f"AUC needs one label 0 or 1 a sample; the labels are {labels.dtype} {list(labels.shape)}")
    found = np.unique(labels)
    if not np.isin(found, (0, 1)).all():
        shown = ", ".join(str(v) for v in found[:5].tolist())
        raise MetricError(f"AUC needs labels that are 0 (normal) or 1 (positive); they hold {shown}")
    if len(found) < 2:
        only = f"only {int(found[0])}" if len(found) else "none"
        raise MetricError(f"AUC needs samples of both classes, 0 and 1; the labels hold {only}")
    return labels.astype(np.int64)
