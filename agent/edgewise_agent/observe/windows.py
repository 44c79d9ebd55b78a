"""Windows of telemetry and of drift, filled and closed. Pure: the clock is the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from edgewise_protocol.features import Values, input_features, output_features, sketch_window
from edgewise_protocol.messages import ModelTelemetry
from edgewise_protocol.sketches import Baseline, FeatureSketch, merge
from numpy.typing import NDArray

from edgewise_agent.serving.latency import LatencyHistogram

_SKETCH_EVERY: Final = 1_024
"""Samples whose feature values are kept before they go into a sketch: it bounds memory."""


class TelemetryWindow:
    """Requests of one model version since the window began."""

    __slots__ = ("errors", "latency", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.latency = LatencyHistogram()

    def add(self, elapsed_ms: float, failed: bool) -> None:
        """Count one request; a failed one has no latency."""
        self.requests += 1
        if failed:
            self.errors += 1
        else:
            self.latency.add(elapsed_ms)

    def report(self, model: str, version: int) -> ModelTelemetry:
        """What the window says so far; latencies in ms, within the engine."""
        return ModelTelemetry(
            model=model,
            version=version,
            requests=self.requests,
            errors=self.errors,
            latency_p50_ms=self.latency.percentile(0.5),
            latency_p95_ms=self.latency.percentile(0.95),
            latency_max_ms=self.latency.maximum_ms,
        )


class DriftWindow:
    """Sketches of the inputs and outputs of one model version since the window began.

    Args:
        baseline: its edges are the sketches' edges.
        opened: the caller's clock, seconds.
        kll: whether quantile sketches are made besides the histograms.
    """

    def __init__(self, baseline: Baseline, opened: float, *, kll: bool) -> None:
        self._baseline = baseline
        self._kll = kll
        self.opened = opened
        self.samples = 0
        self._values: list[Values] = []
        self._unsketched = 0
        self._sketches: dict[str, FeatureSketch] = {}

    def add(self, values: Values, number: int) -> None:
        """Take the feature values of `number` samples."""
        self._values.append(values)
        self._unsketched += number
        self.samples += number
        if self._unsketched >= _SKETCH_EVERY:
            self._sketch()

    def sketches(self) -> dict[str, FeatureSketch]:
        """The window's sketches so far."""
        self._sketch()
        return dict(self._sketches)

    def _sketch(self) -> None:
        if not self._values:
            return
        joined = {name: np.concatenate([v[name] for v in self._values]) for name in self._values[0]}
        for name, sketch in sketch_window(joined, self._baseline, kll=self._kll).items():
            before = self._sketches.get(name)
            self._sketches[name] = sketch if before is None else merge(before, sketch)
        self._values, self._unsketched = [], 0


def feature_values(x: NDArray[Any], y: NDArray[Any], task: str) -> Values:
    """Features of a batch: `x` of shape (N, ...), `y` of shape (N, ...); values of shape (N,)."""
    return {**input_features(x), **output_features(y, task)}


def split(values: Values, number: int, first: int, size: int) -> Iterator[tuple[Values, int]]:
    """Cut `number` samples at `first` and then every `size`, so that windows close where they should."""
    start, end = 0, min(first, number)
    while start < number:
        yield {name: array[start:end] for name, array in values.items()}, end - start
        start, end = end, min(end + size, number)
