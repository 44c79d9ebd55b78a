"""What requests to a model look like, and arrays as whole requests of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from edgewise_protocol.manifest import StatePair, TensorSpec
from numpy.typing import NDArray

from edgewise_converter.errors import SampleError
from edgewise_converter.importing.samples import MAX_SAMPLES, fit
from edgewise_converter.requests import Tensors

Call = Callable[[Tensors], Tensors]
"""The float model on one request."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What requests to a model look like."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: int | None
    state: tuple[StatePair, ...] = ()

    @property
    def fed_back(self) -> frozenset[str]:
        """Inputs that are outputs of the call before."""
        return frozenset(pair.input for pair in self.state)


def stack(taken: Tensors, shape: Shape) -> Tensors:
    """Whole requests (N, ...): an array of a request's own rank serves all of them."""
    specs = {s.name: s for s in shape.inputs}
    counts = {len(a) for name, a in taken.items() if a.ndim == len(specs[name].shape) + 1}
    if len(counts) > 1 or counts & {0} or max(counts, default=1) > MAX_SAMPLES:
        raise SampleError(
            f"the inputs hold different numbers of requests, none, or more than {MAX_SAMPLES}: {sorted(counts)}"
        )
    count = counts.pop() if counts else 1
    return {name: _whole(specs[name], array, count) for name, array in taken.items()}


def _whole(spec: TensorSpec, array: NDArray[Any], count: int) -> NDArray[Any]:
    if array.ndim == len(spec.shape):
        array = np.broadcast_to(array, (count, *array.shape))
    return fit(msgspec.structs.replace(spec, shape=(-1, *spec.shape)), np.ascontiguousarray(array))
