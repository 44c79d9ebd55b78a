"""Paired comparison of two classifiers on the same samples: the exact McNemar test.

McNemar 1947, in the exact (binomial) form: under the hypothesis that both are equally good,
the samples on which exactly one is right fall to either side with probability 1/2.
"""

from __future__ import annotations

from fractions import Fraction

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise_trainer.errors import DataError


class PairedComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Samples by who was right, and the two-sided p of the difference."""

    both_right: int
    only_old: int
    only_new: int
    both_wrong: int
    p_value: float

    @property
    def total(self) -> int:
        return self.both_right + self.only_old + self.only_new + self.both_wrong

    @property
    def gain(self) -> float:
        """Accuracy of the new minus accuracy of the old."""
        return (self.only_new - self.only_old) / self.total


def compare(old_right: NDArray[np.bool_], new_right: NDArray[np.bool_]) -> PairedComparison:
    """Compare two classifiers by which of the same N samples each got right, shape (N,) each.

    Raises:
        DataError: the arrays differ in shape or are empty.
    """
    if old_right.shape != new_right.shape or old_right.ndim != 1 or not old_right.size:
        raise DataError("a paired comparison needs the same samples on both sides, at least one")
    only_old = int((old_right & ~new_right).sum())
    only_new = int((~old_right & new_right).sum())
    return PairedComparison(
        both_right=int((old_right & new_right).sum()),
        only_old=only_old,
        only_new=only_new,
        both_wrong=int((~old_right & ~new_right).sum()),
        p_value=mcnemar_exact(only_old, only_new),
    )


def mcnemar_exact(only_old: int, only_new: int) -> float:
    """Two-sided exact p; 1.0 where the two never disagree."""
    n, fewer = only_old + only_new, min(only_old, only_new)
    term = total = 1
    for i in range(fewer):
        term = term * (n - i) // (i + 1)
        total += term
    return min(1.0, float(Fraction(2 * total, 2**n)))
