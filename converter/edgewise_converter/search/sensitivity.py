"""Which layers quantization hurts: each is quantized alone, and the damage at the outputs measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import ConverterError
from edgewise_converter.metrics.comparison import are_classes, unexplained
from edgewise_converter.requests import Requests, Tensors
from edgewise_converter.search.bench import Bench
from edgewise_converter.search.candidates import Candidate, keeping, layered

SAMPLES: Final = 64
"""Requests that calibrate a form whose damage is measured."""
_JUDGED: Final = 128
"""Requests that damage is measured on, of those that calibrate."""
MAX_UNITS: Final = 40
"""Of layers, or of runs of neighbouring layers where there are more."""
LOST: Final = 1e30
"""The damage of a unit that cannot be quantized alone, or gives NaN."""
_LEAST_MARGIN: Final = 1e-12
"""Two classes of equal values: any error decides."""


class Unit(NamedTuple):
    """Layers that are kept in float, or not, together."""

    layers: tuple[str, ...]
    damage: float = 0.0
    """Root mean square of the output error over that of the output, the worst output's."""
    cost: float = 0.0
    """What it does to the metric, in [0, 1]: see `metric_cost`."""


def units_of(layers: Sequence[str], limit: int = MAX_UNITS) -> tuple[tuple[str, ...], ...]:
    """Layers in the graph's order as at most `limit` runs of neighbours, of equal lengths but for the last. Pure."""
    size = max(1, -(-len(layers) // limit))
    return tuple(tuple(layers[i : i + size]) for i in range(0, len(layers), size))


def rank(bench: Bench, candidate: Candidate, layers: Sequence[str], progress: Callable[[float], None]) -> list[Unit]:
    """Units of a quantized form, those that cost the metric most first, of equal ones those with the larger error.

    Both are measured on calibration requests: what the form is judged by in the end stays unseen.

    Raises:
        EngineError: the source fails on the samples.
    """
    requests = bench.model.calibration.spread(_JUDGED)
    reference = bench.model.source_answers(requests)
    quick = _quick(candidate)
    found = []
    units = units_of(layers)
    for done, unit in enumerate(units):
        progress(done / len(units))
        others = tuple(name for name in layers if name not in unit)
        found.append(_measured(bench, keeping(quick, others), unit, requests, reference))
    return sorted(found, key=lambda unit: (-unit.cost, -unit.damage))


def relative_error(outputs: Tensors, reference: Tensors) -> float:
    """The worst output's relative RMS error, `LOST` where it is not finite. Pure."""
    worst = 0.0
    for name, want in reference.items():
        a, b = want.astype(np.float64), outputs[name].astype(np.float64)
        with np.errstate(all="ignore"):
            scale = float(np.sqrt(np.mean(a**2))) or 1.0
            error = float(np.sqrt(np.mean((a - b) ** 2))) / scale
        worst = max(worst, error if np.isfinite(error) else LOST)
    return worst


def metric_cost(outputs: Tensors, reference: Tensors, task: str) -> float:
    """How near outputs come to losing what a metric counts, in [0, 1], the worst output's. Pure.

    An error at an output says little of a class: a large one may push a sample away from the border,
    a small one across. So where outputs are classes, the error counts that moves the source's class
    and a rival together, as a share of the margin between them: 1 is a changed class. The mean of the
    squares over the samples tells layers apart that change no class, or as many, and grows with what
    errors of several layers would do together. Elsewhere it is what R squared loses, in the worst column.

    Args:
        outputs: of the quantized form, by name, each (N, ...).
        reference: of the source.
        task: of the model; see `comparison.are_classes`.
    """
    worst = 0.0
    for name, want in reference.items():
        a = want.reshape(len(want), -1).astype(np.float64)
        b = outputs[name].reshape(a.shape).astype(np.float64)
        if not np.isfinite(b).all():
            return 1.0
        cost = (
            _crossing(a, b) if are_classes(want, task) else unexplained(want, outputs[name].reshape(want.shape), task)
        )
        worst = max(worst, cost)
    return worst


def _crossing(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    rows, top = np.arange(len(a)), a.argmax(1)
    margin = a[rows, top][:, None] - a
    moved = (b - a) - (b - a)[rows, top][:, None]
    share = np.clip(moved / np.maximum(margin, _LEAST_MARGIN), 0.0, 1.0)
    share[rows, top] = 0.0
    return float(np.mean(np.square(share.max(1))))


def _measured(
    bench: Bench, candidate: Candidate, unit: tuple[str, ...], requests: Requests, reference: Tensors
) -> Unit:
    fed_back = {pair.output for pair in bench.model.state}
    judged = {name: a for name, a in reference.items() if name not in fed_back}
    try:
        outputs = bench.run(candidate, bench.make(candidate), requests)
        return Unit(unit, relative_error(outputs, judged), metric_cost(outputs, judged, bench.model.task))
    except ConverterError:
        return Unit(unit, LOST, 1.0)


def _quick(candidate: Candidate) -> Candidate:
    """The same form, calibrated on few samples."""
    place = layered(candidate)
    if place is None or not hasattr(candidate.steps[place].config, "calibration_samples"):
        return candidate
    step = candidate.steps[place]
    config = msgspec.structs.replace(step.config, calibration_samples=SAMPLES)
    steps = (*candidate.steps[:place], step._replace(config=config), *candidate.steps[place + 1 :])
    return Candidate(candidate.name, steps, candidate.engine, candidate.format, candidate.precision, candidate.is_float)
