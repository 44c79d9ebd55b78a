"""Golden outputs against what a model answered: on the device, and before a bundle is written. Pure.

The rule is the manifest's (`edgewise_protocol.manifest.Golden`): few enough elements outside
of `atol + rtol * |golden|`, and, where `top1` > 0, enough samples with the same arg-max.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_protocol.manifest import Golden

_LARGEST: Final = 1e300
"""Stands for an infinite error, which JSON cannot hold."""


@dataclass(frozen=True)
class Comparison:
    passed: bool
    reason: str
    """Empty when passed."""
    max_abs_error: float
    outliers: float
    """Share of elements outside of the tolerance."""
    top1: float
    """Share of samples with the golden arg-max; 1 for outputs of one value."""


def compare(golden: Golden, expected: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]]) -> Comparison:
    """Compare outputs by name, each of shape (samples, ...).

    A missing output or another shape fails; NaN equals only NaN, and an infinity only itself.
    """
    worst, outside, elements, agreeing, samples = 0.0, 0, 0, 0, 0
    for name, want in expected.items():
        have = got.get(name)
        if have is None or have.shape != want.shape:
            shape = "nothing" if have is None else f"the shape {list(have.shape)}"
            return Comparison(
                False, f"output {name!r}: {list(want.shape)} was expected, got {shape}", _LARGEST, 1.0, 0.0
            )
        a, b = np.atleast_1d(want.astype(np.float64)), np.atleast_1d(have.astype(np.float64))
        atol, rtol = golden.tolerance(name)
        with np.errstate(all="ignore"):
            error = np.abs(a - b)
            error[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
            error[np.isnan(error)] = np.inf
            # What is not finite has no tolerance: it is as large as itself, or no number, and would allow anything.
            outside += int((error > np.where(np.isfinite(a), atol + rtol * np.abs(a), 0.0)).sum())
        elements += error.size
        worst = max(worst, float(error.max(initial=0.0)))
        if not error.size:
            continue
        rows_a, rows_b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        if rows_a.shape[1] > 1:
            agreeing += int((rows_a.argmax(1) == rows_b.argmax(1)).sum())
            samples += rows_a.shape[0]
    if not elements:
        return Comparison(False, "the golden file holds no outputs", _LARGEST, 1.0, 0.0)
    share, top1 = outside / elements, agreeing / samples if samples else 1.0
    reason = ""
    if golden.top1 > 0 and top1 < golden.top1:
        reason = f"{top1:.1%} of the golden samples have the right class; {golden.top1:.1%} must"
    elif golden.outliers > 0 and share > golden.outliers:
        reason = f"{share:.2%} of the outputs are outside of the tolerance; at most {golden.outliers:.2%} may be"
    elif golden.outliers == 0 and outside:
        reason = (
            f"{share:.2%} of the outputs are outside of the tolerance; the largest error is {min(worst, _LARGEST):.4g}"
        )
    return Comparison(not reason, reason, min(worst, _LARGEST), share, top1)
