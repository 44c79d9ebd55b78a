"""Latencies in logarithmic buckets: constant memory, one bisection an observation. Pure."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

_PER_DECADE: Final = 16
_DECADES: Final = (-3, 5)

BOUNDS_MS: Final = tuple(
    10 ** (step / _PER_DECADE) for step in range(_DECADES[0] * _PER_DECADE, _DECADES[1] * _PER_DECADE + 1)
)
"""Upper bounds of the buckets, 1 us to 100 s, each 15 % above the one before; one more bucket is above all."""


class LatencyHistogram:
    """Counts of latencies; a percentile is right to within a bucket, that is 15 %."""

    __slots__ = ("_counts", "count", "maximum_ms", "sum_ms")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_MS) + 1)
        self.count = 0
        self.sum_ms = 0.0
        self.maximum_ms = 0.0

    def add(self, milliseconds: float) -> None:
        """Count one latency."""
        self._counts[bisect_left(BOUNDS_MS, milliseconds)] += 1
        self.count += 1
        self.sum_ms += milliseconds
        if milliseconds > self.maximum_ms:
            self.maximum_ms = milliseconds

    def percentile(self, share: float) -> float:
        """Latency in ms that `share` (0 to 1) of the observations do not exceed; 0 where there are none.

        Within a bucket the observations are taken as evenly spread, and none above the maximum.
        """
        wanted = share * self.count
        seen = 0
        for i, number in enumerate(self._counts):
            if number and seen + number >= wanted:
                low = BOUNDS_MS[i - 1] if i else 0.0
                high = BOUNDS_MS[i] if i < len(BOUNDS_MS) else self.maximum_ms
                inside = max(0.0, wanted - seen) / number
                return min(self.maximum_ms, low + (high - low) * inside)
            seen += number
        return self.maximum_ms

    def cumulative(self, every: int = 8) -> list[tuple[float, int]]:
        """(upper bound in ms, observations at or below it) of every `every`-th bound."""
        found: list[tuple[float, int]] = []
        seen = 0
        for i, bound in enumerate(BOUNDS_MS):
            seen += self._counts[i]
            if i % every == 0:
                found.append((bound, seen))
        return found
