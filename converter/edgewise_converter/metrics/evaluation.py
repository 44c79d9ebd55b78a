"""A converted model under a metric. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import MetricError
from edgewise_converter.metrics.comparison import compare_outputs, top_classes
from edgewise_converter.metrics.ranks import auc, binary
from edgewise_converter.metrics.score import Score

Tensors = Mapping[str, NDArray[Any]]
Measure = Callable[[Tensors, NDArray[Any], Tensors], float]
"""From outputs, labels and inputs to a value in [0, 1]."""
AGREEMENT: Final = "agreement"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name, what it is, and, where it needs labels, how it is measured."""

    name: str
    title: str
    measure: Measure | None

    @property
    def needs_labels(self) -> bool:
        """Whether it needs `y`."""
        return self.measure is not None


def evaluate(
    metric: str, outputs: Tensors, reference: Tensors, y: NDArray[Any] | None, feeds: Tensors, *, task: str = ""
) -> Score:
    """Measure a converted model and its float source on the same samples.

    Args:
        metric: one of `METRICS`.
        outputs: of the converted model, by name, each (N, ...).
        reference: of the float source; what is not to count (a model's state, say) is left out here.
        y: labels (N,), for a metric that needs them. `auc-reconstruction` takes (N / k,) too, where k samples in
            turn are the windows of one recording.
        feeds: the inputs, by name, each (N, ...).
        task: of the model; see `comparison.are_classes`.

    Returns:
        the score; its `outputs` hold the agreement with the source under every metric.

    Raises:
        MetricError: the metric is unknown, or labels or outputs are not of the kind that it needs.
    """
    found = lookup(metric)
    compared = compare_outputs(outputs, reference, task)
    samples = len(next(iter(reference.values())))
    if found.measure is None:
        value, float_value = min(o.agreement for o in compared), 1.0
    else:
        if y is None:
            raise MetricError(f"the metric {metric} needs labels, and the samples have none; {AGREEMENT} needs none")
        judged = {name: outputs[name] for name in reference}
        value, float_value = found.measure(judged, y, feeds), found.measure(reference, y, feeds)
    return Score(
        name=metric,
        value=value,
        float_value=float_value,
        samples=samples,
        labelled=found.needs_labels,
        outputs=compared,
    )


def lookup(metric: str) -> Metric:
    """The metric of a name.

    Raises:
        MetricError: there is none; the message names those that there are.
    """
    if metric not in METRICS:
        raise MetricError(f"there is no metric {metric[:40]!r}; there are {', '.join(METRICS)}")
    return METRICS[metric]


def default_metric(task: str, labelled: bool) -> str:
    """What a model is judged by where nothing was said: classifiers with labels by accuracy, all else by agreement."""
    return "top1" if labelled and task == "classification" else AGREEMENT


def _top1(outputs: Tensors, y: NDArray[Any], _feeds: Tensors) -> float:
    output = _judged(outputs)
    labels = np.asarray(y)
    if labels.dtype.kind not in "biu" or labels.ndim != 1 or len(labels) != len(output):
        raise MetricError(
            f"top1 needs the number of a class for each of the {len(output)} samples; the labels are "
            f"{labels.dtype} {list(labels.shape)}"
        )
    classes = output.reshape(len(output), -1).shape[1]
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or (classes > 1 and high >= classes):
        raise MetricError(f"the labels name the classes {low} to {high}; the model has 0 to {classes - 1}")
    return float(np.mean(top_classes(output) == labels))


def _auc_score(outputs: Tensors, y: NDArray[Any], _feeds: Tensors) -> float:
    output = _judged(outputs)
    rows = output.reshape(len(output), -1).astype(np.float64)
    if rows.shape[1] > 2:
        raise MetricError(
            f"auc-score needs one score a sample, or those of two classes; the output has {list(output.shape[1:])}"
        )
    with np.errstate(invalid="ignore"):
        return auc(rows[:, 0] if rows.shape[1] == 1 else rows[:, 1] - rows[:, 0], y)


def _auc_reconstruction(outputs: Tensors, y: NDArray[Any], feeds: Tensors) -> float:
    name = next(iter(outputs))
    output = outputs[name].reshape(len(outputs[name]), -1).astype(np.float64)
    alike = [a for a in feeds.values() if len(a) == len(output) and a.size == output.size]
    if len(outputs) != 1 or len(alike) != 1:
        raise MetricError(
            "auc-reconstruction needs one output with as many values as one input; the outputs are "
            f"{_shapes(outputs)}, the inputs {_shapes(feeds)}"
        )
    with np.errstate(all="ignore"):
        errors = np.mean(np.square(output - alike[0].reshape(output.shape)), axis=1)
    labels = binary(y)
    if len(errors) % len(labels):
        raise MetricError(f"there are {len(errors)} samples and {len(labels)} labels: neither one each, nor k in turn")
    with np.errstate(all="ignore"):
        return auc(errors.reshape(len(labels), -1).mean(1), labels)


def _judged(outputs: Tensors) -> NDArray[Any]:
    """The output that labels speak of: the only one, or the only one with several values a sample."""
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    wide = [a for a in outputs.values() if a.reshape(len(a), -1).shape[1] > 1]
    if len(wide) == 1:
        return wide[0]
    raise MetricError(
        f"which of the outputs {_shapes(outputs)} the labels are for cannot be told; leave the others out"
    )


def _shapes(tensors: Tensors) -> str:
    return ", ".join(f"{name!r} {list(array.shape)}" for name, array in tensors.items()) or "none"


METRICS: Final[dict[str, Metric]] = {
    m.name: m
    for m in (
        Metric("top1", "share of samples whose class is right", _top1),
        Metric("auc-score", "area under the ROC curve; the model's output is the score", _auc_score),
        Metric(
            "auc-reconstruction",
            "area under the ROC curve; the mean squared error between input and output is the anomaly score",
            _auc_reconstruction,
        ),
        Metric(
            AGREEMENT,
            "agreement with the float model, without labels: same class, equal integers, or R squared; worst output",
            None,
        ),
    )
}
"""By name."""
