"""Distances between two distributions given as counts over the same bins. Pure NumPy.

PSI, the population stability index, is the symmetrised Kullback-Leibler divergence (Yurdakul and Naranjo
2020). JS is the Jensen-Shannon divergence in nats (Lin 1991), at most ln 2. KS is the largest difference of
the two cumulative distributions; over bins it is a lower bound of the exact one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from edgewise_protocol.errors import SketchError
from edgewise_protocol.sketches import FeatureSketch, load_kll
from numpy.typing import NDArray

Counts = NDArray[np.float64]
_PSEUDO: Final = 0.5
"""Added to every bin (Jeffreys' prior), so that an empty one does not make a logarithm infinite."""
_KLL_POINTS: Final = 65


def smooth(counts: Counts) -> Counts:
    """Shares of bins, none of them zero."""
    raised = counts + _PSEUDO
    return np.asarray(raised / raised.sum(), dtype=np.float64)


def psi(window: Counts, reference: Counts) -> float:
    """Population stability index of two count vectors of shape (B,)."""
    p, q = smooth(window), smooth(reference)
    return float(((p - q) * np.log(p / q)).sum())


def jensen_shannon(window: Counts, reference: Counts) -> float:
    """Jensen-Shannon divergence of two count vectors of shape (B,), in nats."""
    p, q = smooth(window), smooth(reference)
    m = (p + q) / 2
    return float(((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2)


def ks_binned(window: Counts, reference: Counts) -> float:
    """Kolmogorov-Smirnov distance at the bins' edges."""
    p, q = window.cumsum() / window.sum(), reference.cumsum() / reference.sum()
    return float(np.abs(p - q).max())


def ks_kll(window: FeatureSketch, reference: FeatureSketch) -> float:
    """Kolmogorov-Smirnov distance of two KLL sketches, at the quantiles of both.

    Raises:
        SketchError: a sketch is not one.
    """
    a, b = load_kll(window.kll), load_kll(reference.kll)
    ranks = np.linspace(0, 1, _KLL_POINTS)
    try:
        points = np.unique(np.concatenate([_quantiles(a, ranks), _quantiles(b, ranks)]))
        cdf_a, cdf_b = np.asarray(a.get_cdf(points)), np.asarray(b.get_cdf(points))
    except (ValueError, RuntimeError) as error:
        raise SketchError(f"a KLL sketch cannot be asked: {error}") from error
    return float(np.abs(cdf_a - cdf_b).max())


def _quantiles(sketch: Any, ranks: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(sketch.get_quantiles(ranks), dtype=np.float32)
