"""Golden inputs and outputs: by which a device tells that a bundle works on it.

The outputs are the converted model's own, on this host; the tolerance covers what another
processor's kernels may differ by, not what conversion cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from edgewise_profiles.schema import Precision
from edgewise_protocol.manifest import Golden
from numpy.typing import NDArray
from safetensors.numpy import load, save

from edgewise_converter.engines.runner import Array

GOLDEN_FILE: Final = "golden.safetensors"
SAMPLES: Final = 16
_INT8_STEPS: Final = 2.5
"""Kernels round differently by one step a layer; two and a half at the output."""
_PROBABILITY: Final = 0.08
"""Softmax magnifies: a logit's step of .15 to .3 moves a probability by up to p (1 - p) times that, a dozen of its
own steps of 1/256, and a step in a layer before moves several logits. Seen: .07, int8 ResNet-8, tflite-runtime 2.14 on
Armv7 against LiteRT 2.3 on x86-64."""


def choose(outputs: Array, count: int = SAMPLES) -> NDArray[np.int64]:
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


def describe(outputs: Array, precision: Precision, step: float | None, task: str) -> Golden:
    """The tolerance for golden `outputs` (N, ...).

    Args:
        outputs: of the converted model.
        precision: of the model.
        step: distance of neighbouring outputs of an integer model, else None.
        task: where it is `classification`, lossy forms are also held to the same classes.
    """
    scale = float(np.abs(outputs).max()) or 1.0
    samples = len(outputs)
    classes = task == "classification"
    if precision == "float32":
        return Golden(file=GOLDEN_FILE, samples=samples, atol=_round(1e-4 * scale), rtol=1e-3)
    # One sample of those given may change its class, and 2 or 5 per cent of the elements stray.
    top1 = (samples - 1) / samples if classes and samples > 1 else 0.0
    if precision == "float16":
        return Golden(
            file=GOLDEN_FILE,
            samples=samples,
            atol=_round(1e-2 * scale),
            rtol=1e-2,
            top1=top1,
            outliers=0.02 if classes else 0.0,
        )
    return Golden(
        file=GOLDEN_FILE,
        samples=samples,
        atol=_round(max(_INT8_STEPS * (step or 2 * scale / 255), _PROBABILITY if _are_probabilities(outputs) else 0.0)),
        rtol=0.0,
        top1=top1,
        outliers=0.05 if classes else 0.0,
    )


def encode(input_name: str, x: Array, output_name: str, y: Array) -> bytes:
    """The golden file's bytes of a model with one input and one output."""
    return encode_named({input_name: x}, {output_name: y})


def encode_named(inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> bytes:
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


def _are_probabilities(outputs: NDArray[Any]) -> bool:
    """Whether every row is of several shares of one, as far as a byte can say: softmax gave them. Shape (N, ...)."""
    rows = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
    if rows.shape[1] < 2 or rows.size == 0:
        return False
    # Each share is rounded, and the small ones to nothing.
    return bool(rows.min() >= 0.0 and rows.max() <= 1.01 and (np.abs(rows.sum(axis=1) - 1.0) < 0.1).all())


def _round(value: float) -> float:
    """Three significant digits: a tolerance need not be more exact."""
    return float(f"{value:.3g}")
