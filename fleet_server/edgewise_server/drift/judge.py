"""Judges one window of sketches against the baseline that travelled in the bundle. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from edgewise_protocol.errors import SketchError
from edgewise_protocol.sketches import Baseline, FeatureSketch, kll_available

from edgewise_server.drift.distances import Counts, jensen_shannon, ks_binned, ks_kll, psi
from edgewise_server.drift.thresholds import DriftSettings, Thresholds, thresholds

OUTPUT_PREFIX: Final = "output"


@dataclass(frozen=True, slots=True)
class FeatureScore:
    """Distances of one feature, and the thresholds that they were held against. `ks` is None for categories."""

    feature: str
    samples: int
    psi: float
    psi_threshold: float
    js: float
    js_threshold: float
    ks: float | None
    ks_threshold: float | None
    not_finite: float
    drifted: bool
    severe: bool
    calm: bool


@dataclass(frozen=True, slots=True)
class WindowScore:
    """The verdict on a window. `judged` is false where it was too small or had no known feature."""

    judged: bool
    drifted: bool
    severe: bool
    calm: bool
    features: tuple[FeatureScore, ...] = ()

    @property
    def drifted_features(self) -> tuple[str, ...]:
        return tuple(score.feature for score in self.features if score.drifted)


def judge(window: Mapping[str, FeatureSketch], baseline: Baseline, settings: DriftSettings) -> WindowScore:
    """Score every feature that the baseline knows.

    A numeric feature has drifted where KS and one of PSI and JS exceed their thresholds, or PSI and JS do by far;
    a categorical one where both PSI and JS do: one measure alone is not believed.
    """
    scores = [
        score
        for name, sketch in sorted(window.items())
        if (reference := baseline.features.get(name)) is not None
        and (score := _score(name, sketch, reference, settings)) is not None
    ]
    return WindowScore(
        judged=bool(scores),
        drifted=any(s.drifted for s in scores),
        severe=any(s.severe for s in scores),
        calm=all(s.calm for s in scores),
        features=tuple(scores),
    )


def _score(name: str, window: FeatureSketch, reference: FeatureSketch, settings: DriftSettings) -> FeatureScore | None:
    if window.kind != reference.kind or window.edges != reference.edges or len(window.counts) != len(reference.counts):
        return None  # sketched over another baseline's edges: the two do not compare
    values = window.total + window.not_finite
    if values < settings.min_samples or reference.total < settings.min_samples:
        return None
    broken = window.not_finite / values
    if window.total < settings.min_samples or broken > settings.not_finite_ratio + _share(reference):
        return _not_finite(name, values, broken)
    p, q = np.asarray(window.counts, dtype=np.float64), np.asarray(reference.counts, dtype=np.float64)
    numeric = window.kind == "numeric"
    ks, approximate = _ks(window, reference, p, q) if numeric else (None, False)
    limits = thresholds(
        settings,
        samples=window.total,
        reference=reference.total,
        bins=len(window.counts),
        output=name.startswith(OUTPUT_PREFIX),
        approximate=approximate,
    )
    return _verdict(name, window.total, psi(p, q), jensen_shannon(p, q), ks, broken, limits, settings)


def _verdict(
    name: str,
    samples: int,
    psi_value: float,
    js_value: float,
    ks_value: float | None,
    broken: float,
    limits: Thresholds,
    settings: DriftSettings,
) -> FeatureScore:
    by_bins = (psi_value > limits.psi, js_value > limits.js)
    far = psi_value > settings.severe_factor * limits.psi and js_value > settings.severe_factor * limits.js
    drifted = all(by_bins) if ks_value is None else far or (any(by_bins) and ks_value > limits.ks)
    ratios = [psi_value / limits.psi, js_value / limits.js]
    if ks_value is not None:
        ratios.append(ks_value / limits.ks)
    return FeatureScore(
        feature=name,
        samples=samples,
        psi=psi_value,
        psi_threshold=limits.psi,
        js=js_value,
        js_threshold=limits.js,
        ks=ks_value,
        ks_threshold=None if ks_value is None else limits.ks,
        not_finite=broken,
        drifted=drifted,
        severe=drifted and psi_value > max(settings.severe_psi, settings.severe_factor * limits.psi),
        calm=max(ratios) < settings.calm_factor,
    )


def _not_finite(name: str, values: int, broken: float) -> FeatureScore:
    return FeatureScore(
        feature=name,
        samples=values,
        psi=0.0,
        psi_threshold=0.0,
        js=0.0,
        js_threshold=0.0,
        ks=None,
        ks_threshold=None,
        not_finite=broken,
        drifted=True,
        severe=True,
        calm=False,
    )


def _share(sketch: FeatureSketch) -> float:
    return sketch.not_finite / max(1, sketch.total + sketch.not_finite)


def _ks(window: FeatureSketch, reference: FeatureSketch, p: Counts, q: Counts) -> tuple[float, bool]:
    """KS distance, and whether it comes from approximate sketches."""
    if window.kll and reference.kll and kll_available():
        try:
            return ks_kll(window, reference), True
        except SketchError:
            return ks_binned(p, q), False  # the histogram beside it was checked when it was decoded
    return ks_binned(p, q), False
