"""Danger: percentiles that no call took, or a histogram that loses calls."""

from __future__ import annotations

import numpy as np
import pytest
from edgewise_protocol.latencies import bars, histogram, summarise
from hypothesis import given
from hypothesis import strategies as st

durations = st.lists(st.integers(1, 10**10), min_size=1, max_size=300)


@given(durations)
def test_percentiles_are_calls_that_happened(times: list[int]) -> None:
    found = summarise(times)
    taken = {round(t / 1e6, 6) for t in times}
    assert {found.median_ms, found.p95_ms, found.p99_ms, found.minimum_ms, found.maximum_ms} <= taken
    assert found.minimum_ms <= found.median_ms <= found.p95_ms <= found.p99_ms <= found.maximum_ms
    within = sum(t <= found.p95_ms * 1e6 + 0.5 for t in times)
    assert within >= 0.95 * len(times) and found.calls == len(times)


@given(durations, st.integers(1, 20))
def test_a_histogram_holds_every_call_once(times: list[int], bins: int) -> None:
    found = histogram(times, bins)
    assert sum(b.calls for b in found) == len(times) and len(found) <= bins + 1
    assert all(b.from_ms <= b.to_ms for b in found)
    assert [a.to_ms for a in found[:-1]] == [b.from_ms for b in found[1:]]
    assert len(bars(found)) == len(found)


def test_figures_of_a_known_distribution() -> None:
    found = summarise([int(n * 1e6) for n in range(1, 101)])
    assert (found.median_ms, found.p95_ms, found.p99_ms) == (50.0, 95.0, 99.0)
    assert found.mean_ms == 50.5 and found.per_second == pytest.approx(1000 / 50.5, abs=1e-3)


def test_the_tail_is_one_row() -> None:
    found = histogram([*np.full(96, 1_000_000), *np.full(4, 90_000_000)])
    assert [(b.from_ms, b.to_ms, b.calls) for b in found] == [(1.0, 1.0, 96), (1.0, 90.0, 4)]
    assert "█" in bars(found)[0] and bars(found)[1].endswith(" 4")


def test_no_calls_have_no_figures() -> None:
    with pytest.raises(ValueError, match="no call"):
        summarise([])
