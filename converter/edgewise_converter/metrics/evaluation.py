"""A converted model under a metric. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from numpy.typing import NDArray

from edgewise_converter.errors import MetricError
from edgewise_converter.metrics.comparison import compare_outputs
from edgewise_converter.metrics.labelled import (
    Measure,
    Pick,
    Tensors,
    auc_reconstruction,
    auc_score,
    pick_classes,
    pick_reconstruction,
    pick_score,
    top1,
)
from edgewise_converter.metrics.score import Score

AGREEMENT: Final = "agreement"


class Labelled(NamedTuple):
    """How a metric with labels is measured: of which output, and what."""

    pick: Pick
    measure: Measure


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name, what it is, and, where it needs labels, how it is measured."""

    name: str
    title: str
    labelled: Labelled | None

    @property
    def needs_labels(self) -> bool:
        """Whether it needs `y`."""
        return self.labelled is not None


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
    if found.labelled is None:
        value, float_value = min(o.agreement for o in compared), 1.0
    else:
        if y is None:
            raise MetricError(f"the metric {metric} needs labels, and the samples have none; {AGREEMENT} needs none")
        name = found.labelled.pick(reference, y, feeds)
        value = found.labelled.measure(outputs[name], reference[name], y, feeds)
        float_value = found.labelled.measure(reference[name], reference[name], y, feeds)
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


METRICS: Final[dict[str, Metric]] = {
    m.name: m
    for m in (
        Metric("top1", "share of samples whose class is right", Labelled(pick_classes, top1)),
        Metric(
            "auc-score", "area under the ROC curve; the model's output is the score", Labelled(pick_score, auc_score)
        ),
        Metric(
            "auc-reconstruction",
            "area under the ROC curve; the mean squared error between input and output is the anomaly score",
            Labelled(pick_reconstruction, auc_reconstruction),
        ),
        Metric(
            AGREEMENT,
            "agreement with the float model, without labels: same class, equal integers, or R squared of the worst "
            "column; worst output",
            None,
        ),
    )
}
"""By name."""
