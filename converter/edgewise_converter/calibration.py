"""Which samples quantization is calibrated on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spread_indices(count: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` of `count` places, evenly spread, ascending."""
    if count <= limit:
        return np.arange(count, dtype=np.int64)
    return np.linspace(0, count - 1, limit).round().astype(np.int64)


def spread(x: NDArray[np.float32], limit: int) -> NDArray[np.float32]:
    """At most `limit` samples of `x` (N, ...), evenly spread over it, in its order."""
    return x[spread_indices(len(x), limit)]
