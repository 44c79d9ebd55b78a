"""Answering any number of samples with a file whose batch is fixed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise_agent.engines.base import Tensors
from edgewise_agent.engines.errors import InferenceError, InputError


def run_fixed(
    run: Callable[[Mapping[str, NDArray[Any]]], Tensors], inputs: Mapping[str, NDArray[Any]], batch: int
) -> Tensors:
    """Run `inputs` of N samples through `run`, which takes exactly `batch` samples, and join the outputs.

    A last, partial group is filled up with copies of its last sample, whose answers are cut off.

    Raises:
        InputError: the inputs have different numbers of samples.
        InferenceError: an output does not have `batch` rows, so that no row can be told from another.
    """
    counts = {array.shape[0] for array in inputs.values()}
    if len(counts) != 1:
        raise InputError(f"the inputs have different numbers of samples: {sorted(counts)}")
    (total,) = counts
    if total == batch:
        return run(inputs)
    pieces: dict[str, list[NDArray[Any]]] = {}
    for start in range(0, total, batch):
        kept = min(batch, total - start)
        group = {name: _filled(array[start : start + kept], batch) for name, array in inputs.items()}
        for name, rows in run(group).items():
            if rows.ndim == 0 or rows.shape[0] != batch:
                raise InferenceError(f"output {name!r} has the shape {list(rows.shape)}, not {batch} rows")
            pieces.setdefault(name, []).append(rows[:kept])
    return {name: np.concatenate(rows) for name, rows in pieces.items()}


def _filled(rows: NDArray[Any], batch: int) -> NDArray[Any]:
    missing = batch - rows.shape[0]
    if not missing:
        return rows
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
