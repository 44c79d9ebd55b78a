"""What an engine is to the converter: outputs of a batch, and the time of one sample."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_WARM_UP: Final = 20
_MAX_TIMED: Final = 400
_MAX_SECONDS: Final = 2.0


class Runner(ABC):
    """A loaded model on one thread."""

    engine: str
    version: str
    """Of the engine's Python distribution."""

    @abstractmethod
    def infer(self, x: Array) -> Array:
        """Outputs (N, ...) float32 of inputs (N, ...) float32, in the model's real units.

        Raises:
            EngineError: the engine fails.
        """

    @abstractmethod
    def output_step(self) -> float | None:
        """The distance of neighbouring output values, or None where outputs are continuous."""

    def median_latency_ms(self, sample: Array) -> float:
        """Median time of one sample (1, ...), milliseconds: of 400 runs, or of 2 seconds' worth, at least 5."""
        for _ in range(_WARM_UP):
            self.infer(sample)
        times: list[float] = []
        deadline = time.perf_counter() + _MAX_SECONDS
        while len(times) < _MAX_TIMED:
            start = time.perf_counter()
            self.infer(sample)
            end = time.perf_counter()
            times.append(end - start)
            if end > deadline and len(times) >= 5:
                break
        return statistics.median(times) * 1e3
