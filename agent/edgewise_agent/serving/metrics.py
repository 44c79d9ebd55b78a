"""Metrics in the Prometheus text format, version 0.0.4. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from edgewise_agent.serving.latency import LatencyHistogram
from edgewise_agent.serving.table import ActiveModel

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Sample(NamedTuple):
    """One line: labels and value; `suffix` is added to the metric's name."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


class Metric(NamedTuple):
    """One metric with its samples."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Sequence[Sample]


def render(metrics: Iterable[Metric]) -> bytes:
    """The exposition of some metrics."""
    lines: list[str] = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {metric.help}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for sample in metric.samples:
            labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in sample.labels.items())
            lines.append(f"{metric.name}{sample.suffix}{'{' + labels + '}' if labels else ''} {sample.value:.17g}")
    return ("\n".join(lines) + "\n").encode()


def of_models(models: Sequence[ActiveModel]) -> list[Metric]:
    """Counters of the active versions, since each became active."""
    named = [(m, {"model": m.model, "version": str(m.version)}) for m in models]
    return [
        Metric(
            "edgewise_inferences_total",
            "counter",
            "Requests that the active version answered.",
            [Sample(labels, m.stats.ok) for m, labels in named],
        ),
        Metric(
            "edgewise_inference_errors_total",
            "counter",
            "Requests on which the active version failed.",
            [Sample(labels, m.stats.errors) for m, labels in named],
        ),
        Metric(
            "edgewise_inference_refused_total",
            "counter",
            "Requests whose inputs the active version could not take.",
            [Sample(labels, m.stats.refused) for m, labels in named],
        ),
        Metric(
            "edgewise_queue_requests",
            "gauge",
            "Requests accepted and not yet answered.",
            [Sample(labels, m.lane.waiting) for m, labels in named],
        ),
        Metric(
            "edgewise_inference_seconds",
            "histogram",
            "Time within the engine of one request.",
            [sample for m, labels in named for sample in _histogram(labels, m.stats.latency)],
        ),
        Metric(
            "edgewise_active_since_seconds",
            "gauge",
            "When the version became active, seconds since the epoch.",
            [Sample(labels, m.stats.since) for m, labels in named],
        ),
    ]


def _histogram(labels: Mapping[str, str], latency: LatencyHistogram) -> list[Sample]:
    buckets = [Sample({**labels, "le": f"{ms / 1000:.6g}"}, n, "_bucket") for ms, n in latency.cumulative()]
    total = max(latency.count, int(buckets[-1].value))
    return [
        *buckets,
        Sample({**labels, "le": "+Inf"}, total, "_bucket"),
        Sample(labels, latency.sum_ms / 1000, "_sum"),
        Sample(labels, total, "_count"),
    ]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
