"""Outputs of a converted model against those of its float source. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import MetricError
from edgewise_converter.metrics.score import LARGEST, OutputAgreement

_SUM_TOLERANCE: Final = 1e-2
"""By which the probabilities of a sample may miss 1: a float16 softmax does."""
_CONSTANT: Final = 1e-5
"""A column that varies by less than this share of its RMS is taken as constant: float32 keeps some 1e-7 of a number,
and sums of many terms lose a part of that."""
_ROUNDING: Final = 1e-6
"""A column that varies by less than this share of what the widest column does is taken as constant, too."""
_FAINT: Final = 1e-3
"""A column that varies by less than this share of what the widest column does is held to that: its own variation may
be rounding alone."""
_ONE_UNIT: Final = 5e-2
"""The same where all values are in [-1, 1], as of sigmoid and tanh, and the task is no regression: they are of one
unit, and a tail near 0 that an eight-bit step cannot show is no quantity of its own."""
_FEW: Final = 8
"""Values of a column that say nothing of its spread: an output with fewer is taken whole."""


def compare_outputs(
    outputs: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]], task: str
) -> tuple[OutputAgreement, ...]:
    """Every output of the source, each array (N, ...), with how far the converted model's is from it.

    Args:
        outputs: of the converted model, by name; more than the source's are ignored.
        reference: of the float source.
        task: with `classification`, outputs of two or more values a sample are classes. Without, they are where
            the source's are probabilities.

    Raises:
        MetricError: an output is missing, empty, of another shape, or the source's is not finite.
    """
    if not reference:
        raise MetricError("there are no outputs to compare")
    found = []
    for name, want in reference.items():
        have = outputs.get(name)
        if have is None or have.shape != want.shape:
            shape = "missing" if have is None else f"of shape {list(have.shape)}"
            raise MetricError(f"the output {name!r} is {shape}; the float model's has the shape {list(want.shape)}")
        if want.size == 0 or want.ndim == 0:
            raise MetricError(f"the output {name!r} of shape {list(want.shape)} holds no samples to compare")
        if want.dtype.kind not in "biuf" or have.dtype.kind not in "biuf":
            raise MetricError(f"the output {name!r} is {want.dtype} and {have.dtype}; numbers are compared")
        if not np.isfinite(want).all():
            raise MetricError(f"the float model's own output {name!r} is NaN or infinite on these samples")
        found.append(_compare(name, have, want, task))
    return tuple(found)


def _compare(name: str, have: NDArray[Any], want: NDArray[Any], task: str) -> OutputAgreement:
    a, b = want.astype(np.float64), have.astype(np.float64)
    finite = bool(np.isfinite(b).all())
    if are_classes(want, task):
        basis, agreement = "top-1", float(np.mean(top_classes(want) == top_classes(have)))
    elif want.dtype.kind in "biu":
        basis, agreement = "equal elements", float(np.mean(a == b))
    else:
        basis, agreement = "r-squared", 1.0 - unexplained(a, b, task)
    with np.errstate(all="ignore"):
        cosine = _cosine(a, b) if finite else -1.0
        relative = _bounded(_rms(b - a) / (_rms(a) or 1.0)) if finite else LARGEST
        worst = _bounded(float(np.abs(b - a).max())) if finite else LARGEST
    return OutputAgreement(
        output=name, agreement=agreement, basis=basis, cosine=cosine, relative_error=relative, max_error=worst
    )


def are_classes(reference: NDArray[Any], task: str) -> bool:
    """Whether the largest of a sample's values names its class.

    Args:
        reference: the source's output (N, ...).
        task: of the model; a classifier's outputs are, others' are where they are probabilities.
    """
    rows = reference.reshape(len(reference), -1)
    if reference.dtype.kind != "f" or rows.shape[1] < 2:
        return False
    if task == "classification":
        return reference.ndim == 2 or max(reference.shape[1:]) == rows.shape[1]
    sums = rows.astype(np.float64).sum(1)
    return reference.ndim == 2 and bool((rows >= 0).all() and (np.abs(sums - 1) <= _SUM_TOLERANCE).all())


def top_classes(outputs: NDArray[Any], border: float | None = None) -> NDArray[np.int64]:
    """The class of each sample, shape (N,); -1 where any of its values is NaN or infinite.

    Of one value a sample, 1 above the border, else 0; without a border the nearest integer, a class's number.
    """
    rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    safe = np.where(finite[:, None], rows, 0.0)
    if rows.shape[1] > 1:
        return np.where(finite, safe.argmax(1), -1)
    named = np.rint(safe[:, 0]) if border is None else safe[:, 0] > border
    return np.where(finite, named, -1).astype(np.int64)


def unexplained(reference: NDArray[Any], outputs: NDArray[Any], task: str) -> float:
    """What outputs do not tell of the source's: 1 - R squared of the worst column, in [0, 1].

    A column is what one value of the answer says, over all samples and places: an element of the last axis, and of
    axis 1 too where there are more than two, since channels are there or there by the file's layout. Each is held to
    its own spread: an offset between columns, or a column of larger unit, would hide that another is lost. Of an
    `embedding` the columns make up one vector, which is compared as a whole: the errors of all against the spreads
    of all.

    A column that is constant in the source is held to its size, or to the spread of the widest column where that is
    more; one that is nearly so, to a share of that spread (`_FAINT`, `_ONE_UNIT`).

    Args:
        reference: of the source, (N, ...), finite.
        outputs: the converted model's, of the same shape; what is not finite explains nothing.
        task: of the model.
    """
    a, b = reference.astype(np.float64), outputs.astype(np.float64)
    if not np.isfinite(b).all():
        return 1.0
    # By the largest value first, so that squares neither overflow nor vanish.
    top = float(np.abs(a).max()) or 1.0
    faint = _ONE_UNIT if top <= 1.0 and task != "regression" else _FAINT
    with np.errstate(over="ignore", under="ignore"):
        a, b = a / top, b / top
        worst = max(_worst_column(a, b, over, faint, together=task == "embedding") for over in _places(a.shape))
    return min(worst, 1.0)


def _places(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The axes that a column goes along, for every axis that columns may be on; all axes where it would be short."""
    axes = [len(shape) - 1] if len(shape) == 2 else [1, len(shape) - 1] if len(shape) > 2 else []
    every = tuple(range(len(shape)))
    found = [tuple(i for i in every if i != axis) for axis in axes]
    return [over for over in found if math.prod(shape[i] for i in over) >= _FEW] or [every]


def _worst_column(
    a: NDArray[np.float64], b: NDArray[np.float64], over: tuple[int, ...], faint: float, *, together: bool
) -> float:
    """1 - R squared, unbounded, of columns along the axes `over`."""
    size, spread = (np.atleast_1d(x) for x in (np.sqrt(np.mean(np.square(a), axis=over)), a.std(axis=over)))
    error = np.atleast_1d(np.sqrt(np.mean(np.square(b - a), axis=over)))
    widest = float(spread.max())
    constant = spread <= np.maximum(_CONSTANT * size, _ROUNDING * widest)
    scale = np.where(constant, np.maximum(size, widest), np.maximum(spread, faint * widest))
    if together:
        spreads = scale if constant.all() else np.where(constant, 0.0, spread)
        error, scale = (np.sqrt(np.mean(np.square(x), keepdims=True)) for x in (error, spreads))
    lost = np.divide(error, scale, out=np.where(error > 0, np.inf, 0.0), where=scale > 0)
    return float(np.square(lost).max())


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # By the largest value first, so that squares neither overflow nor vanish.
    top_a, top_b = float(np.abs(a).max()), float(np.abs(b).max())
    if top_a == 0.0 or top_b == 0.0:
        return float(top_a == top_b)
    x, y = (a / top_a).ravel(), (b / top_b).ravel()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _rms(a: NDArray[np.float64]) -> float:
    top = float(np.abs(a).max())
    if top == 0.0 or not np.isfinite(top):
        return top
    return top * float(np.sqrt(np.mean(np.square(a / top))))


def _bounded(value: float) -> float:
    return min(value, LARGEST) if np.isfinite(value) else LARGEST
