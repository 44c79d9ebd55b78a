"""How large a distance must be before it means something.

A threshold is the larger of two: an effect size below which nobody would act, and a significance bound that
grows as the samples become few, so that a small window of in-distribution data does not alarm. Where a sketch
is approximate, its error is added.

Under equal distributions PSI / (1/n + 1/N) follows about a chi-squared distribution with B - 1 degrees of
freedom (Yurdakul and Naranjo 2020), JS a chi-squared one times (1/n + 1/N) / 8, and KS Smirnov's limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from edgewise_protocol.sketches import KLL_RANK_ERROR


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """Bounds of drift detection.

    The effect sizes of outputs are larger than those of inputs: a model is surer of itself on what it was
    trained on than on held-out data of the same kind, and that gap is no drift.
    """

    alpha: float = 1e-4
    """Chance of one measure of one feature of one in-distribution window to exceed its bound."""
    psi_effect: float = 0.2
    js_effect: float = 0.025
    ks_effect: float = 0.12
    output_factor: float = 1.5
    """By which the effect sizes of `output.*` features are larger."""
    severe_psi: float = 1.0
    severe_factor: float = 2.0
    """A severe feature exceeds `severe_psi` and this multiple of its PSI threshold."""
    not_finite_ratio: float = 0.05
    """Share of values that are NaN or infinite above which a feature has drifted, severely."""
    min_samples: int = 30
    """Smaller windows are not judged."""
    open_after: int = 2
    """Consecutive drifted windows that open an alert; one severe window opens it too."""
    close_after: int = 3
    """Consecutive calm windows that close it."""
    calm_factor: float = 0.8
    """A window is calm where every measure is below this share of its threshold."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    psi: float
    js: float
    ks: float


def chi_squared_quantile(p: float, k: int) -> float:
    """Quantile of the chi-squared distribution with `k` degrees of freedom (Wilson and Hilferty 1931)."""
    z = NormalDist().inv_cdf(p)
    c = 2 / (9 * k)
    return float(k * max(0.0, 1 - c + z * math.sqrt(c)) ** 3)


def thresholds(
    settings: DriftSettings, *, samples: int, reference: int, bins: int, output: bool, approximate: bool
) -> Thresholds:
    """Thresholds for a window of `samples` against a baseline of `reference` values over `bins` bins.

    Args:
        output: the feature is one of the model's output.
        approximate: KS is computed from KLL sketches, each with its rank error.
    """
    spread = 1 / samples + 1 / reference
    bound = chi_squared_quantile(1 - settings.alpha, max(1, bins - 1)) * spread
    smirnov = math.sqrt(-math.log(settings.alpha / 2) / 2 * spread)
    factor = settings.output_factor if output else 1.0
    return Thresholds(
        psi=max(settings.psi_effect * factor, bound),
        js=max(settings.js_effect * factor, bound / 8),
        ks=max(settings.ks_effect * factor, smirnov) + (2 * KLL_RANK_ERROR if approximate else 0.0),
    )
