"""Golden inputs and outputs: by which a device tells that a bundle works on it.

The outputs are the converted model's own, on this host; the tolerance covers what another
processor's kernels may differ by, not what conversion cost. Its scale is the spread of the answers over the golden
samples: see `describe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import Golden
from numpy.typing import NDArray
from safetensors.numpy import load, save

GOLDEN_FILE: Final = "golden.safetensors"
SAMPLES: Final = 16
_INT8_STEPS: Final = 2.5
"""Kernels round differently by one step a layer; two and a half at the output."""
_FLOAT32: Final = 1e-3
_FLOAT16: Final = 1e-2
"""How far answers of another processor may be off, as a share of what they range over: sums in another order differ
by about 1e-6 and 1e-3 of their terms."""
_NOISE: Final = 1e-5
"""The same as a share of the answers themselves, for those that hardly vary: float32 keeps some 1e-7 of a number."""
_HALF_STEPS: Final = 2.0**-9
"""Two steps of float16 as a share of a number, where answers are such steps."""
_SPREAD: Final = 0.5
"""The root mean square of the errors, as a share of the spread of the answers over the samples: always answering the
mean has 1, negated answers have 2 or more. Another processor moves answers by less than conversion did, which is taken
to be under .1 within a budget of a point, and .05 to .2 for quantized probabilities: reasoned, not measured."""
_PROBABILITY: Final = 0.08
"""Softmax magnifies: a logit's step of .15 to .3 moves a probability by up to p (1 - p) times that, a dozen of its
own steps of 1/256, and a step in a layer before moves several logits. Seen: .07, int8 ResNet-8, tflite-runtime 2.14 on
Armv7 against LiteRT 2.3 on x86-64."""


def choose(outputs: NDArray[np.float32], count: int = SAMPLES) -> NDArray[np.int64]:
    """Which samples become golden, given the model's outputs (N, ...) on the candidates.

    Taken class by class in turn, the clearest first, so that every class is there and a
    rounding does not change an answer; ties go to the earlier sample. Indices ascend.
    """
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    if flat.shape[1] < 2:
        return np.unique(np.linspace(0, len(flat) - 1, min(count, len(flat))).round().astype(np.int64))
    top = np.sort(flat, axis=1)
    margin, predicted = top[:, -1] - top[:, -2], flat.argmax(1)
    rank = np.empty(len(flat), np.int64)
    for label in np.unique(predicted):
        members = np.flatnonzero(predicted == label)
        rank[members[np.argsort(-margin[members], kind="stable")]] = np.arange(len(members))
    order = np.lexsort((predicted, rank))
    return np.sort(order[:count])


def describe(outputs: NDArray[Any], precision: str, step: float | None, task: str, *, several: bool = False) -> Golden:
    """The tolerance for golden `outputs` (N, ...) of one name.

    It is a share of what the answers range over, not of their size: a temperature in kelvin is near 300 whatever the
    model does. It is never less than what the form itself can tell apart: `step`, or that of float16 where all the
    answers are float16 numbers. Lossy forms are held to a root mean square too, a share of how the answers spread over
    the samples: a few elements may stray, but a model that always answers the mean, or the opposite, is refused
    however wide the tolerance of an element is.

    Args:
        outputs: of the converted model; of one sample alone, its elements stand for the samples.
        precision: of the model.
        step: distance of neighbouring outputs of an integer model, else None.
        task: where it is `classification`, lossy forms are also held to the same classes, but for one sample.
        several: whether the model has other outputs. Few elements of each may stray then, and samples whose two
            largest values lie within the tolerance may change their class: `choose` takes the clear ones of one
            output, and another may be no classes at all.
    """
    rows = np.atleast_1d(np.asarray(outputs, np.float64))
    samples, classes = len(rows), task == "classification"
    rows = rows.reshape(samples, -1)
    lossy = precision != "float32"
    if outputs.dtype.kind in "biu":  # named classes, counts: equal, but of one sample where roundings decide
        stray = max(1 / samples, 0.05) if lossy and samples > 1 else 0.0
        return Golden(file=GOLDEN_FILE, samples=samples, atol=0.0, rtol=0.0, outliers=stray)
    size = float(np.abs(rows).max()) or 1.0
    columns = rows if samples > 1 else rows.reshape(-1, 1)
    span, spread = float(np.ptp(columns, axis=0).max()), float(np.sqrt(np.mean(columns.var(axis=0))))
    floor = _NOISE * size
    if not lossy:
        return Golden(file=GOLDEN_FILE, samples=samples, atol=_round(_FLOAT32 * span + floor), rtol=_NOISE)
    rtol = 0.0
    if precision == "float16":
        atol, least, stray = _FLOAT16 * span + floor, floor, 0.02 if classes else 0.0
        if _are_half(rows):
            rtol, least = _HALF_STEPS, max(floor, _HALF_STEPS / 4 * float(np.sqrt(np.mean(np.square(rows)))))
    else:
        chances = _PROBABILITY if _are_probabilities(rows) else 0.0
        least = max((step or 0.0) * (_INT8_STEPS if chances else 1.0), floor)
        # Without steps at the end, those inside decide: twice what a step of the range would be.
        atol, stray = max(_INT8_STEPS * (step or 2 * (span or size) / 255), chances, floor), 0.05 if classes else 0.0
    return Golden(
        file=GOLDEN_FILE,
        samples=samples,
        atol=_round(atol),
        rtol=rtol,
        top1=_same_classes(rows, 2 * (atol + rtol * size) if several else -1.0) if classes and samples > 1 else 0.0,
        outliers=0.05 if several else stray,
        rms=_round(max(_SPREAD * spread, least)) if span else 0.0,
    )


def _same_classes(rows: NDArray[np.float64], margin: float) -> float:
    """Least share of samples that keep their class: all but one, of those whose margin is larger than this."""
    top = np.sort(rows, axis=1)
    clear = (top[:, -1] - top[:, -2] > margin) if rows.shape[1] > 1 else np.ones(len(rows), np.bool_)
    return max(0, int(clear.sum()) - 1) / len(rows)


def encode(inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> bytes:
    """The golden file's bytes; arrays are (samples, ...)."""
    named = {f"input.{name}": array for name, array in inputs.items()}
    named |= {f"output.{name}": array for name, array in outputs.items()}
    return bytes(save({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in named.items()}))


def decode(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Inputs and outputs of a golden file, by name."""
    arrays = load(data)
    split: dict[str, dict[str, NDArray[Any]]] = {"input": {}, "output": {}}
    for key, array in arrays.items():
        side, _, name = key.partition(".")
        split[side][name] = array
    return split["input"], split["output"]


def _are_half(rows: NDArray[np.float64]) -> bool:
    """Whether all numbers are such as float16 holds: the form's last operation rounds to them."""
    with np.errstate(over="ignore"):
        return bool((rows.astype(np.float16) == rows).all())


def _are_probabilities(rows: NDArray[np.float64]) -> bool:
    """Whether every row (N, C) is of several shares of one, as far as a byte can say: softmax gave them."""
    if rows.shape[1] < 2 or rows.size == 0:
        return False
    # Each share is rounded, and the small ones to nothing.
    return bool(rows.min() >= 0.0 and rows.max() <= 1.01 and (np.abs(rows.sum(axis=1) - 1.0) < 0.1).all())


def _round(value: float) -> float:
    """Three significant digits: a tolerance need not be more exact."""
    return float(f"{value:.3g}")
