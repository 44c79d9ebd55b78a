"""The float source against its own samples, before any form of it is made. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import MetricError
from edgewise_converter.metrics.evaluation import AGREEMENT, Metric, lookup
from edgewise_converter.metrics.labelled import Tensors


def check_source(metric: str, reference: Tensors, y: NDArray[Any] | None, feeds: Tensors) -> tuple[str, ...]:
    """Refuse a source by whose answers nothing can be judged, and say what is odd of it.

    Args:
        metric: one of `METRICS`.
        reference: the source's outputs that count, by name, each (N, ...).
        y: labels of the held-out samples.
        feeds: their inputs, by name, each (N, ...).

    Returns:
        notes: which of several outputs the labels judge; that the source is no better than chance.

    Raises:
        MetricError: an answer is NaN or infinite, or the labels do not fit.
    """
    for name, array in reference.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            broken = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
            raise MetricError(
                f"the float model's own output {name!r} is NaN or infinite on {len(broken)} of the {len(array)} "
                f"held-out samples, first on sample {broken[0]}: no form can be judged by it. Mend the model, or "
                "leave out samples that it is not made for"
            )
    found = lookup(metric)
    if found.labelled is None or y is None:
        return ()
    judged = found.labelled.pick(reference, y, feeds)
    value = found.labelled.measure(reference[judged], reference[judged], y, feeds)
    return tuple(filter(None, (_which(judged, reference), _no_better(found, value, y))))


def _which(judged: str, reference: Tensors) -> str:
    others = ", ".join(repr(name) for name in reference if name != judged)
    if not others:
        return ""
    return f"the labels judge {judged!r} alone of the outputs, and not {others}; --metric {AGREEMENT} counts all"


def _no_better(metric: Metric, value: float, y: NDArray[Any]) -> str:
    """What to look at where the source does not know what the labels say."""
    if metric.name == "top1":
        classes, counts = np.unique(y, return_counts=True)
        if len(classes) == 1:
            return f"all held-out labels are the class {classes[0]}: whether the model tells classes apart is not seen"
        chance, how = float(counts.max() / counts.sum()), "always naming the most frequent class"
        look = "that the labels number the classes as the model does, from 0"
    else:
        chance, how, look = 0.5, "chance", "that label 1 is what has the larger score"
    if value > chance:
        return ""
    return (
        f"the float model itself has {metric.name} {100 * value:.1f} % on the held-out labels, and {how} has "
        f"{100 * chance:.1f} %: check {look}, and are in the samples' order"
    )
