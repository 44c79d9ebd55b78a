"""Corrupted inputs, as a failing camera gives them: for streams that must raise a drift alert.

After the corruptions of ImageNet-C (Hendrycks, Dietterich 2019), in plain NumPy: fading
contrast, sensor noise and dead pixels, all growing with one severity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise_trainer.errors import DataError


def corrupt(
    x: NDArray[np.float32],
    severity: float,
    seed: int,
    *,
    value_range: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """Corrupt samples.

    Args:
        x: float32, shape (N, ...). It is not changed.
        severity: 0 (unchanged) to 1 (hardly anything left).
        seed: the same seed gives the same corruption.
        value_range: lowest and highest value of an element; by default those of `x`.

    Returns:
        float32 of the same shape, within the range.

    Raises:
        DataError: the severity is out of range.
    """
    if not 0 <= severity <= 1:
        raise DataError(f"severity must be from 0 to 1, not {severity}")
    if severity == 0 or x.size == 0:
        return x.copy()
    low, high = value_range or (float(x.min()), float(x.max()))
    span = max(high - low, 1e-12)
    random = np.random.default_rng(seed)
    middle = low + span / 2
    faded = middle + (x - middle) * (1.0 - 0.7 * severity)
    noisy = faded + random.normal(0.0, 0.35 * severity * span, x.shape)
    dead = random.random(x.shape) < 0.15 * severity
    noisy = np.where(dead, random.choice([low, high], x.shape), noisy)
    return np.clip(noisy, low, high).astype(np.float32)
