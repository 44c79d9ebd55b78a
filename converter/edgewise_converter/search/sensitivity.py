"""Which layers quantization hurts: each is quantized alone, and the damage at the outputs measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from edgewise_converter.errors import ConverterError
from edgewise_converter.requests import Requests, Tensors
from edgewise_converter.search.bench import Bench
from edgewise_converter.search.candidates import Candidate, keeping, layered

SAMPLES: Final = 64
"""Requests that damage is measured on, of those that calibrate."""
MAX_UNITS: Final = 40
"""Of layers, or of runs of neighbouring layers where there are more."""
LOST: Final = 1e30
"""The damage of a unit that cannot be quantized alone, or gives NaN."""


class Unit(NamedTuple):
    """Layers that are kept in float, or not, together."""

    layers: tuple[str, ...]
    damage: float = 0.0
    """Root mean square of the output error over that of the output, the worst output's."""


def units_of(layers: Sequence[str], limit: int = MAX_UNITS) -> tuple[tuple[str, ...], ...]:
    """Layers in the graph's order as at most `limit` runs of neighbours, of equal lengths but for the last. Pure."""
    size = max(1, -(-len(layers) // limit))
    return tuple(tuple(layers[i : i + size]) for i in range(0, len(layers), size))


def rank(bench: Bench, candidate: Candidate, layers: Sequence[str], progress: Callable[[float], None]) -> list[Unit]:
    """Units of a quantized form, those that hurt most first; ties stay in the graph's order.

    Raises:
        EngineError: the source fails on the samples.
    """
    requests = bench.model.calibration.spread(SAMPLES)
    reference = bench.model.source_answers(requests)
    quick = _quick(candidate)
    found = []
    units = units_of(layers)
    for done, unit in enumerate(units):
        progress(done / len(units))
        others = tuple(name for name in layers if name not in unit)
        found.append(Unit(unit, _damage(bench, keeping(quick, others), requests, reference)))
    return sorted(found, key=lambda unit: -unit.damage)


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


def _damage(bench: Bench, candidate: Candidate, requests: Requests, reference: Tensors) -> float:
    fed_back = {pair.output for pair in bench.model.state}
    try:
        outputs = bench.run(candidate, bench.make(candidate), requests)
        return relative_error(outputs, {name: a for name, a in reference.items() if name not in fed_back})
    except ConverterError:
        return LOST


def _quick(candidate: Candidate) -> Candidate:
    """The same form, calibrated on as few samples as the damage is measured on."""
    place = layered(candidate)
    if place is None or not hasattr(candidate.steps[place].config, "calibration_samples"):
        return candidate
    step = candidate.steps[place]
    config = msgspec.structs.replace(step.config, calibration_samples=SAMPLES)
    steps = (*candidate.steps[:place], step._replace(config=config), *candidate.steps[place + 1 :])
    return Candidate(candidate.name, steps, candidate.engine, candidate.format, candidate.precision, candidate.is_float)
