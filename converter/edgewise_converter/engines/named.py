"""A loaded model with any number of named inputs and outputs, and any batch.

What a file says of its tensors becomes what a client sees (`TensorSpec`), by the rules that the
device's engines follow: where all inputs and outputs have one and the same first dimension it is
the batch, and free; a file whose batch is fixed answers more samples group by group.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import TensorSpec
from numpy.typing import NDArray

from edgewise_converter.errors import EngineError, SampleError

Tensors = dict[str, NDArray[Any]]
FREE: Final = -1
_GROUP: Final = 64
"""Samples of one call, where the batch is free."""
_WARM_UP: Final = 20
_MAX_TIMED: Final = 400
_MAX_SECONDS: Final = 2.0


class NamedModel(ABC):
    """A model file in its engine, on one thread.

    `inputs` and `outputs` are as the client sees them. `batch` is what the file takes at once:
    -1 for any number, None where its tensors have no batch in common.
    """

    engine: str
    version: str
    """Of the engine's Python distribution."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: int | None
    precision: str
    """`float32`, `float16`, `int8` or another of the schema's: what its weights or activations are."""
    stateful: bool = False
    """Whether the file itself keeps something from one request to the next."""
    mixes_batch: bool = False
    """Whether what else is in a batch changes a sample's answer: activations get one scale for all of it."""

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Answer what the file takes at once; raises `EngineError`."""

    @abstractmethod
    def steps(self) -> dict[str, float]:
        """The distance of neighbouring values, for outputs that are not continuous."""

    def reset(self) -> None:  # noqa: B027  # most engines keep nothing
        """Forget earlier requests, where the file keeps something of them."""

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Answer samples.

        Args:
            feeds: every input, (N, ...) or, where there is no batch, as the specs say.

        Raises:
            EngineError: the engine fails, or answers in a shape from which samples cannot be told.
            SampleError: the inputs have different numbers of samples.
        """
        if self.batch is None:
            return self._run(feeds)
        counts = {len(array) for array in feeds.values()}
        if len(counts) != 1:
            raise SampleError(f"the inputs have different numbers of samples: {sorted(counts)}")
        (total,) = counts
        size = _GROUP if self.batch == FREE else self.batch
        found: dict[str, list[NDArray[Any]]] = {}
        for start in range(0, total, size):
            kept = min(size, total - start)
            group = {name: np.ascontiguousarray(array[start : start + kept]) for name, array in feeds.items()}
            if self.batch != FREE and kept < size:
                group = {n: np.concatenate([a, np.repeat(a[-1:], size - kept, axis=0)]) for n, a in group.items()}
            for name, rows in self._run(group).items():
                if rows.ndim == 0 or len(rows) < kept:
                    raise EngineError(f"the output {name!r} has the shape {list(rows.shape)} for {kept} samples")
                found.setdefault(name, []).append(rows[:kept])
        return {name: np.concatenate(rows) for name, rows in found.items()}

    def call(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Answer what the file takes at once, as it is given; raises `EngineError`."""
        return self._run(feeds)

    def median_latency_ms(self, feeds: Mapping[str, NDArray[Any]]) -> float:
        """Median time of one call on what the file takes at least, milliseconds.

        Of 400 calls, or of 2 seconds' worth, at least 5.
        """
        for _ in range(_WARM_UP):
            self._run(feeds)
        times: list[float] = []
        deadline = time.perf_counter() + _MAX_SECONDS
        while len(times) < _MAX_TIMED:
            start = time.perf_counter()
            self._run(feeds)
            end = time.perf_counter()
            times.append(end - start)
            if end > deadline and len(times) >= 5:
                break
        return statistics.median(times) * 1e3


def common_batch(shapes: Sequence[Sequence[int]]) -> int | None:
    """The batch of tensors of these shapes: -1 if free, k if fixed, None if they have none in common. Pure."""
    first = {shape[0] if len(shape) else None for shape in shapes}
    if len(first) != 1:
        return None
    (size,) = first
    return size


def with_free_batch(shape: Sequence[int], batch: int | None) -> tuple[int, ...]:
    """A shape as the client sees it."""
    return tuple(shape) if batch is None else (FREE, *shape[1:])
