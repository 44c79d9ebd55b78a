"""Which samples quantization is calibrated on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spread(x: NDArray[np.float32], limit: int) -> NDArray[np.float32]:
    """At most `limit` samples of `x` (N, ...), evenly spread over it, in its order."""
    if len(x) <= limit:
        return x
    return x[np.linspace(0, len(x) - 1, limit).round().astype(np.int64)]
