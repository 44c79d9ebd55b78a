"""Metrics that need labels: which output they judge, and how. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import MetricError
from edgewise_converter.metrics.comparison import top_classes
from edgewise_converter.metrics.ranks import auc, binary

Tensors = Mapping[str, NDArray[Any]]
Pick = Callable[[Tensors, NDArray[Any], Tensors], str]
"""From the source's outputs, labels and inputs to the name of the output that the labels judge."""
Measure = Callable[[NDArray[Any], NDArray[Any], NDArray[Any], Tensors], float]
"""From a model's output, the source's, labels and inputs to a value in [0, 1]."""


def pick_classes(reference: Tensors, y: NDArray[Any], _feeds: Tensors) -> str:
    """The only output; or, of those with several values a sample, the narrowest that has the classes of `y`.

    Others of a classifier are wider, as an embedding is, or of one value; of equal ones the first counts.
    """
    if len(reference) == 1:
        return next(iter(reference))
    labels = np.asarray(y)
    most = int(labels.max(initial=0)) if labels.dtype.kind in "biu" else 0
    wide = {name: _width(array) for name, array in reference.items() if array.dtype.kind == "f" and _width(array) > 1}
    fitting = [name for name, width in wide.items() if width > most]
    if not fitting:
        raise _untold(reference, f"the labels name the classes 0 to {most}")
    return min(fitting, key=lambda name: wide[name])


def pick_score(reference: Tensors, _y: NDArray[Any], _feeds: Tensors) -> str:
    """The only output; or the first of two values a sample, those of two classes; or the first of one."""
    if len(reference) == 1:
        return next(iter(reference))
    narrow = [name for width in (2, 1) for name, array in reference.items() if _width(array) == width]
    if not narrow:
        raise _untold(reference, "auc-score needs one score a sample, or those of two classes")
    return narrow[0]


def pick_reconstruction(reference: Tensors, _y: NDArray[Any], feeds: Tensors) -> str:
    """The one output that has as many values as one input."""
    found = [name for name, array in reference.items() if len(_alike(array, feeds)) == 1]
    if len(found) != 1:
        raise MetricError(
            "auc-reconstruction needs one output with as many values as one input; the outputs are "
            f"{shapes(reference)}, the inputs {shapes(feeds)}"
        )
    return found[0]


def top1(output: NDArray[Any], reference: NDArray[Any], y: NDArray[Any], _feeds: Tensors) -> float:
    """The share of samples whose class is right."""
    labels = np.asarray(y)
    if labels.dtype.kind not in "biu" or labels.ndim != 1 or len(labels) != len(output):
        raise MetricError(
            f"top1 needs the number of a class for each of the {len(output)} samples; the labels are "
            f"{labels.dtype} {list(labels.shape)}"
        )
    classes = _width(output)
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or (classes > 1 and high >= classes):
        raise MetricError(f"the labels name the classes {low} to {high}; the model has 0 to {classes - 1}")
    return float(np.mean(top_classes(output, border(reference, labels)) == labels))


def border(reference: NDArray[Any], labels: NDArray[Any]) -> float | None:
    """Above which a float value of one a sample is class 1; None where it is the number of a class itself.

    One half, where the source's values are probabilities; 0, where there are others than those of [0, 1], so that
    they are logits, or signs. With labels beyond 1 a value is a class's number, and so it is where all are whole and
    none is negative.

    Args:
        reference: of the source, (N, ...), which says what the values are: a converted one may leave [0, 1] by a step.
        labels: whole numbers, (N,).
    """
    if _width(reference) != 1 or reference.dtype.kind != "f" or int(labels.max(initial=0)) > 1:
        return None
    values = reference[np.isfinite(reference)]
    if not values.size or (values.min() >= 0 and bool((values == np.rint(values)).all())):
        return None
    return 0.5 if values.min() >= 0 and values.max() <= 1 else 0.0


def auc_score(output: NDArray[Any], _reference: NDArray[Any], y: NDArray[Any], _feeds: Tensors) -> float:
    """The area under the ROC curve of one score a sample, or of the difference of two classes'."""
    rows = output.reshape(len(output), -1).astype(np.float64)
    if rows.shape[1] > 2:
        raise MetricError(
            f"auc-score needs one score a sample, or those of two classes; the output has {list(output.shape[1:])}"
        )
    with np.errstate(invalid="ignore"):
        return auc(rows[:, 0] if rows.shape[1] == 1 else rows[:, 1] - rows[:, 0], y)


def auc_reconstruction(output: NDArray[Any], _reference: NDArray[Any], y: NDArray[Any], feeds: Tensors) -> float:
    """The area under the ROC curve of the mean squared error between an input and the output."""
    rows = output.reshape(len(output), -1).astype(np.float64)
    (like,) = _alike(output, feeds)
    with np.errstate(all="ignore"):
        errors = np.mean(np.square(rows - like.reshape(rows.shape)), axis=1)
    labels = binary(y)
    if len(errors) % len(labels):
        raise MetricError(f"there are {len(errors)} samples and {len(labels)} labels: neither one each, nor k in turn")
    with np.errstate(all="ignore"):
        return auc(errors.reshape(len(labels), -1).mean(1), labels)


def shapes(tensors: Tensors) -> str:
    """Names and shapes, in words."""
    return ", ".join(f"{name!r} {list(array.shape)}" for name, array in tensors.items()) or "none"


def _alike(output: NDArray[Any], feeds: Tensors) -> list[NDArray[Any]]:
    return [a for a in feeds.values() if len(a) == len(output) and a.size == output.size]


def _width(array: NDArray[Any]) -> int:
    """Values a sample."""
    return array.reshape(len(array), -1).shape[1]


def _untold(reference: Tensors, why: str) -> MetricError:
    return MetricError(
        f"which of the outputs {shapes(reference)} the labels are for cannot be told ({why}); "
        "give --metric agreement, which needs no labels and compares all of them with the float model"
    )
