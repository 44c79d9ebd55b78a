"""Waits between tries: doubled each time, bounded, and spread, so that a fleet does not try together."""

from __future__ import annotations

import random
from typing import Final

_MAX_DOUBLINGS: Final = 32


class Backoff:
    """Args:
    minimum: first wait, seconds, before it is spread.
    maximum: longest wait, seconds.
    """

    def __init__(self, minimum: float, maximum: float) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self._tries = 0

    def next(self) -> float:
        """Seconds to wait before the next try: between a half and the whole of the doubled wait."""
        longest = min(self._maximum, self._minimum * 2.0 ** min(self._tries, _MAX_DOUBLINGS))
        self._tries += 1
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads tries, keeps no secret

    def reset(self) -> None:
        """A try succeeded."""
        self._tries = 0
