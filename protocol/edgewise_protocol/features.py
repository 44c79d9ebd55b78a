"""Which features of inputs and outputs are sketched: the same on trainer and device.

Inputs are reduced to a few per-sample summaries, so that an image costs as much as a row:
mean, standard deviation, minimum, maximum and roughness (mean absolute difference of
neighbours along the last axis); rows of at most 16 values are kept by column. Outputs of a
classifier give the predicted class, the confidence (largest softmax probability), the
margin to the second, and the entropy in nats.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_protocol.sketches import Baseline, FeatureSketch, quantile_edges, sketch_categorical, sketch_numeric

Values = dict[str, NDArray[np.float64]]
CLASS_FEATURE: Final = "output.class"
_MAX_COLUMNS: Final = 16


def input_features(x: NDArray[Any]) -> Values:
    """Features of a batch of inputs `x`, shape (N, ...); each value has shape (N,)."""
    n = x.shape[0]
    flat = np.asarray(x, dtype=np.float64).reshape(n, -1)
    if flat.shape[1] == 0:
        return {}
    last = np.asarray(x, dtype=np.float64).reshape(n, -1, x.shape[-1] if x.ndim > 1 else 1)
    with np.errstate(all="ignore"):
        found: Values = {
            "input.mean": flat.mean(1),
            "input.std": flat.std(1),
            "input.min": flat.min(1),
            "input.max": flat.max(1),
        }
        if last.shape[2] > 1:
            found["input.roughness"] = np.abs(np.diff(last, axis=2)).mean((1, 2))
    if flat.shape[1] <= _MAX_COLUMNS:
        found |= {f"input[{i}]": flat[:, i] for i in range(flat.shape[1])}
    return found


def output_features(y: NDArray[Any], task: str) -> Values:
    """Features of a batch of outputs `y`, shape (N, C) logits or probabilities; values of shape (N,)."""
    n = y.shape[0]
    flat = np.asarray(y, dtype=np.float64).reshape(n, -1)
    if task != "classification" or flat.shape[1] < 2:
        return {f"output[{i}]": flat[:, i] for i in range(min(flat.shape[1], _MAX_COLUMNS))}
    with np.errstate(all="ignore"):
        rows = flat.sum(1)
        if flat.min() >= 0 and np.allclose(rows, 1.0, atol=1e-3):
            p = flat
        else:
            shifted = np.exp(flat - flat.max(1, keepdims=True))
            p = shifted / shifted.sum(1, keepdims=True)
        top = np.sort(p, axis=1)[:, -2:]
        return {
            CLASS_FEATURE: flat.argmax(1).astype(np.float64),
            "output.confidence": top[:, 1],
            "output.margin": top[:, 1] - top[:, 0],
            "output.entropy": -(p * np.log(np.maximum(p, 1e-12))).sum(1),
        }


def build_baseline(x: NDArray[Any], y: NDArray[Any], task: str, *, bins: int = 10, kll: bool = True) -> Baseline:
    """The baseline of a model from inputs (N, ...) of its training distribution and its outputs (N, C)."""
    features: dict[str, FeatureSketch] = {}
    classes = int(np.prod(y.shape[1:])) if y.ndim > 1 else 1
    for name, values in {**input_features(x), **output_features(y, task)}.items():
        if name == CLASS_FEATURE:
            features[name] = sketch_categorical(values.astype(np.int64), classes)
        else:
            features[name] = sketch_numeric(values, quantile_edges(values, bins), kll=kll)
    return Baseline(samples=int(x.shape[0]), features=features)


def sketch_window(values: Values, baseline: Baseline, *, kll: bool = False) -> dict[str, FeatureSketch]:
    """Sketch a window's feature values over the baseline's edges; features unknown to it are left out."""
    found: dict[str, FeatureSketch] = {}
    for name, array in values.items():
        reference = baseline.features.get(name)
        if reference is None:
            continue
        if reference.kind == "categorical":
            found[name] = sketch_categorical(array.astype(np.int64), len(reference.counts))
        else:
            found[name] = sketch_numeric(array, reference.edges, kll=kll)
    return found
