"""What many timed calls amount to: the same figures on a host, on a device and over the network. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

_NS_PER_MS: Final = 1e6
_BAR: Final = 40
_TAIL: Final = 0.95
"""What lies above this share of the calls is drawn as one row of a histogram."""


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """Times of single calls, milliseconds. Percentiles are of the nearest rank: a call really took as long."""

    calls: int
    median_ms: float
    p95_ms: float
    p99_ms: float
    minimum_ms: float
    maximum_ms: float
    mean_ms: float
    per_second: float
    """Calls a second, one after another."""


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """A bar of a histogram: calls that took at least `from_ms` and less than `to_ms` (the last: at most)."""

    from_ms: float
    to_ms: float
    calls: int


def summarise(times_ns: Sequence[int]) -> Latencies:
    """The figures of timed calls.

    Args:
        times_ns: one duration a call, nanoseconds; at least one.

    Raises:
        ValueError: there is none.
    """
    if not len(times_ns):
        raise ValueError("no call was timed")
    times = np.asarray(times_ns, np.float64) / _NS_PER_MS
    median, p95, p99 = np.percentile(times, (50, 95, 99), method="inverted_cdf").tolist()
    mean = float(times.mean())
    return Latencies(
        calls=len(times),
        median_ms=round(median, 6),
        p95_ms=round(p95, 6),
        p99_ms=round(p99, 6),
        minimum_ms=round(float(times.min()), 6),
        maximum_ms=round(float(times.max()), 6),
        mean_ms=round(mean, 6),
        per_second=round(1000 / max(mean, 1e-6), 3),
    )


def histogram(times_ns: Sequence[int], bins: int = 12) -> tuple[Bin, ...]:
    """Bars of equal width from the fastest call to the 95th percentile, and one for the rest above, if any.

    Args:
        times_ns: nanoseconds; at least one.
        bins: at least 1.
    """
    times = np.sort(np.asarray(times_ns, np.float64) / _NS_PER_MS)
    low, top = float(times[0]), float(times[-1])
    high = float(np.percentile(times, 100 * _TAIL, method="inverted_cdf"))
    body = times[times <= high]
    edges = np.linspace(low, high, bins + 1) if high > low else np.array([low, high])
    counts = np.histogram(body, edges)[0] if high > low else np.array([len(body)])
    found = [
        Bin(from_ms=round(float(a), 6), to_ms=round(float(b), 6), calls=int(n))
        for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    if above := len(times) - len(body):
        found.append(Bin(from_ms=round(high, 6), to_ms=round(top, 6), calls=above))
    return tuple(found)


def bars(bins: Sequence[Bin]) -> list[str]:
    """A histogram as lines of text."""
    most = max((b.calls for b in bins), default=0) or 1
    width = max((len(f"{b.to_ms:.4g}") for b in bins), default=0)
    return [
        f"{b.from_ms:>{width}.4g} to {b.to_ms:<{width}.4g} ms  {'█' * round(_BAR * b.calls / most):<{_BAR}} {b.calls}"
        for b in bins
    ]
