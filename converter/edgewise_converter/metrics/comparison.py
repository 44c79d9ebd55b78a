"""Outputs of a converted model against those of its float source. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import MetricError
from edgewise_converter.metrics.score import LARGEST, OutputAgreement

_SUM_TOLERANCE: Final = 1e-2
"""By which the probabilities of a sample may miss 1: a float16 softmax does."""
_CONSTANT: Final = 1e-3
"""An output that varies by less than this share of its RMS is taken as constant."""


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
        basis, agreement = "r-squared", _r_squared(a, b) if finite else 0.0
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


def top_classes(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """The class of each sample, shape (N,); -1 where any of its values is NaN or infinite.

    Of one value a sample, the nearest integer: a class's number, or a probability against one half.
    """
    rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    safe = np.where(finite[:, None], rows, 0.0)
    named = safe.argmax(1) if rows.shape[1] > 1 else np.rint(safe[:, 0])
    return np.where(finite, named, -1).astype(np.int64)


def _r_squared(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The coefficient of determination of b as a prediction of a, no less than 0; about 0 for a constant a."""
    spread, size = float(a.std()), _rms(a)
    scale = spread if spread > _CONSTANT * size else size
    error = _rms(b - a)
    if scale == 0.0:
        return float(error == 0.0)
    with np.errstate(over="ignore"):
        return float(np.clip(1.0 - np.square(np.float64(error / scale)), 0.0, 1.0))


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
