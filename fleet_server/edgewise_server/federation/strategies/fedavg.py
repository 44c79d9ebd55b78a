"""FedAvg: the mean of the clients' weights, weighted by their samples (McMahan et al. 2017).

FedProx (Li et al. 2020) aggregates the same way: its proximal term `mu` acts on the client.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgewise_server.federation.strategies.strategy import Added, Strategy
from edgewise_server.federation.updates import UpdateError, Vector

_BLOCK: Final = 32_768
"""Values handled at a time, so that they stay in the processor's cache."""


class FedAvg(Strategy):
    """Keeps one float64 sum of weighted changes; memory does not grow with the clients."""

    def __init__(self, start: Vector, parameters: int, clip_norm: float | None = None) -> None:
        super().__init__(start, parameters, clip_norm)
        self._sum = np.zeros(start.shape, dtype=np.float64)
        self._scaled = np.empty(min(_BLOCK, start.size), dtype=np.float64)
        self._weight = 0

    def add(self, update: Vector, samples: int) -> Added:
        if update.shape != self.start.shape:
            raise UpdateError(f"the update has {update.size} values; the round's weights have {self.start.size}")
        if samples < 1:
            raise UpdateError("the update was trained on no samples")
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(update, self.start, out=update)
            norm = float(np.sqrt(self._square(update[: self.parameters])))
            buffers = self._square(update[self.parameters :])
        if not np.isfinite(norm) or not np.isfinite(buffers):
            raise UpdateError("the update holds values that are not finite, or too large to average")
        clipped = self.clip_norm is not None and norm > self.clip_norm
        scale = self.clip_norm / norm if self.clip_norm is not None and clipped else 1.0
        self._accumulate(update, samples, scale)
        self._weight += samples
        return Added(norm, clipped)

    def result(self) -> Vector:
        if not self._weight:
            raise UpdateError("no update was taken in")
        return np.asarray(self.start + self._sum / self._weight, dtype=np.float32)

    @staticmethod
    def _square(values: Vector) -> float:
        return sum(float(np.dot(block, block)) for block in np.split(values, range(_BLOCK, values.size, _BLOCK)))

    def _accumulate(self, change: Vector, samples: int, scale: float) -> None:
        """Parameters weigh `samples * scale`, buffers `samples`: clipping bounds the parameters alone."""
        for start in range(0, change.size, _BLOCK):
            end = min(start + _BLOCK, change.size)
            scaled = self._scaled[: end - start]
            cut = min(max(self.parameters - start, 0), end - start)
            np.multiply(change[start : start + cut], samples * scale, out=scaled[:cut])
            np.multiply(change[start + cut : end], float(samples), out=scaled[cut:])
            self._sum[start:end] += scaled
