"""A bound on how often unauthenticated callers may try."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from edgewise_server.errors import TooManyRequestsError

MAX_ADDRESSES: Final = 10_000
_TOTAL: Final = "*"
_TOTAL_FACTOR: Final = 10


class RateBound:
    """Token buckets: `per_minute` tries for each address, ten times as many for all together.

    It bounds one process; the addresses remembered are bounded too.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, address: str) -> None:
        """Count one try; raise `TooManyRequestsError` if it is one too many."""
        with self._lock:
            self._take(address, self._per_minute)
            self._take(_TOTAL, self._per_minute * _TOTAL_FACTOR)

    def _take(self, key: str, per_minute: int) -> None:
        now = self._clock()
        left, at = self._buckets.pop(key, (float(per_minute), now))
        left = min(float(per_minute), left + (now - at) * per_minute / 60)
        enough = left >= 1
        self._buckets[key] = (left - 1 if enough else left, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        if not enough:
            raise TooManyRequestsError("too many tries; try again later", max(1, round((1 - left) * 60 / per_minute)))
