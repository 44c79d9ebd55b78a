"""Golden outputs against what a model answered: on the device, and before a bundle is written. Pure.

The rule is the manifest's (`edgewise_protocol.manifest.Golden`): few enough elements outside
of `atol + rtol * |golden|`, where `top1` > 0 enough samples with the same arg-max, and where
`rms` > 0 errors whose root mean square is no larger.
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


@dataclass(frozen=True)
class _Measured:
    """Errors of one output, or of several together."""

    outside: int = 0
    elements: int = 0
    agreeing: int = 0
    """Samples with the golden arg-max."""
    samples: int = 0
    """Of outputs of several values."""
    worst: float = 0.0
    rms: float = 0.0
    """The largest of an output."""

    def __add__(self, other: _Measured) -> _Measured:
        return _Measured(
            self.outside + other.outside,
            self.elements + other.elements,
            self.agreeing + other.agreeing,
            self.samples + other.samples,
            max(self.worst, other.worst),
            max(self.rms, other.rms),
        )

    @property
    def share(self) -> float:
        return self.outside / self.elements if self.elements else 0.0

    @property
    def top1(self) -> float:
        return self.agreeing / self.samples if self.samples else 1.0


def compare(golden: Golden, expected: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]]) -> Comparison:
    """Compare outputs by name, each of shape (samples, ...).

    An output whose tolerance has `outliers` is judged alone, so that a wide output cannot hide a
    narrow one; the others are judged together, as all are in bundles that name none. A missing
    output or another shape fails; NaN equals only NaN, and an infinity only itself.
    """
    alone: list[str] = []
    total = together = _Measured()
    for name, want in expected.items():
        have = got.get(name)
        if have is None or have.shape != want.shape:
            shape = "nothing" if have is None else f"the shape {list(have.shape)}"
            return Comparison(
                False, f"output {name!r}: {list(want.shape)} was expected, got {shape}", _LARGEST, 1.0, 0.0
            )
        own = golden.own(name)
        found = _measure(want, have, *golden.tolerance(name))
        total += found
        rms = golden.rms if own is None else own.rms
        if own is not None and own.outliers is not None:
            alone.append(_reason(found, own.top1, own.outliers, rms, f"the output {name!r}"))
            continue
        together += found
        if rms > 0 and not found.rms <= rms:
            alone.append(_reason(found, 0.0, 1.0, rms, f"the output {name!r}"))
    if not total.elements:
        return Comparison(False, "the golden file holds no outputs", _LARGEST, 1.0, 0.0)
    reason = _reason(together, golden.top1, golden.outliers, 0.0, "the outputs") or next(filter(None, alone), "")
    return Comparison(not reason, reason, min(total.worst, _LARGEST), total.share, total.top1)


def _measure(want: NDArray[Any], have: NDArray[Any], atol: float, rtol: float) -> _Measured:
    a, b = np.atleast_1d(want.astype(np.float64)), np.atleast_1d(have.astype(np.float64))
    if not a.size:
        return _Measured()
    with np.errstate(all="ignore"):
        error = np.abs(a - b)
        error[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
        error[np.isnan(error)] = np.inf
        # What is not finite has no tolerance: it is as large as itself, or no number, and would allow anything.
        outside = int((error > np.where(np.isfinite(a), atol + rtol * np.abs(a), 0.0)).sum())
        worst = float(error.max())
        # By the largest first, so that squares neither overflow nor vanish.
        finite = 0.0 < worst < np.inf
        rms = worst * float(np.sqrt(np.mean(np.square(error / worst)))) if finite else worst
    rows_a, rows_b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    if rows_a.shape[1] == 1:
        return _Measured(outside, a.size, worst=worst, rms=rms)
    agreeing = int((rows_a.argmax(1) == rows_b.argmax(1)).sum())
    return _Measured(outside, a.size, agreeing, rows_a.shape[0], worst, rms)


def _reason(found: _Measured, top1: float, outliers: float, rms: float, what: str) -> str:
    """Why it does not pass; empty where it does."""
    if top1 > 0 and found.top1 < top1:
        return f"{found.top1:.1%} of the golden samples have the right class in {what}; {top1:.1%} must"
    if outliers > 0 and found.share > outliers:
        return f"{found.share:.2%} of {what} are outside of the tolerance; at most {outliers:.2%} may be"
    if outliers == 0 and found.outside:
        return (
            f"{found.share:.2%} of {what} are outside of the tolerance; "
            f"the largest error is {min(found.worst, _LARGEST):.4g}"
        )
    if rms > 0 and not found.rms <= rms:
        return f"the errors of {what} have a root mean square of {min(found.rms, _LARGEST):.4g}; {rms:.4g} is allowed"
    return ""
