"""The baseline that travels in a bundle, with the same bytes every time.

A KLL sketch that has seen more than k values has thrown coins, which cannot be seeded. So a
baseline's sketch is given k evenly spaced order statistics, at which it keeps every one: its
rank error is at most 1 / (2 (k - 1)), a quarter of a per cent, below KLL's own 1.33. Its own
count `n` is therefore at most k; the number of samples is the baseline's `samples`.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import numpy as np
from edgewise_protocol.features import CLASS_FEATURE, build_baseline, input_features, output_features
from edgewise_protocol.sketches import KLL_K, encode_baseline
from numpy.typing import NDArray

from edgewise_converter.libraries import need


def make_baseline(x: NDArray[np.float32], y: NDArray[np.float32], task: str) -> bytes:
    """A model's `baseline.json`.

    Args:
        x: inputs of the training distribution, (N, ...).
        y: the converted model's outputs on them, (N, ...).
        task: of the model.

    Raises:
        MissingExtraError: datasketches is not installed.
    """
    plain = build_baseline(x, y, task, kll=False)
    features = {
        name: msgspec.structs.replace(plain.features[name], kll=_reproducible_kll(values))
        for name, values in {**input_features(x), **output_features(y, task)}.items()
        if name != CLASS_FEATURE
    }
    return encode_baseline(msgspec.structs.replace(plain, features=plain.features | features))


def _reproducible_kll(values: NDArray[Any]) -> str:
    finite = np.sort(values[np.isfinite(values)].astype(np.float32))
    if finite.size == 0:
        return ""
    places = np.linspace(0, finite.size - 1, min(KLL_K, finite.size)).round().astype(np.int64)
    sketch = need("datasketches").kll_floats_sketch(KLL_K)
    sketch.update(finite[places])
    return base64.b64encode(sketch.serialize()).decode("ascii")
