"""Requests to a model: what it is calibrated on, judged on and timed with.

A model whose tensors have a batch in common takes any part of the samples at once. One without
(a detector with one image, a stateful model) takes whole requests, kept here one after another
along an axis of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.calibration import spread_indices
from edgewise_converter.errors import SampleError

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Requests:
    """N requests, by input name.

    Attributes:
        feeds: arrays (N, ...). With `batched`, row i is sample i; else it is request i, whole.
        batched: whether the model takes several rows at once.

    Raises:
        SampleError: there is no request, or the inputs have different numbers of them.
    """

    feeds: Tensors
    batched: bool = True

    def __post_init__(self) -> None:
        counts = {len(array) for array in self.feeds.values()}
        if len(counts) != 1 or 0 in counts:
            raise SampleError(f"the inputs hold different numbers of requests, or none: {sorted(counts)}")

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values())))

    def one(self, i: int) -> Tensors:
        """What one call takes at least: a batch of one, or request i."""
        return {name: np.ascontiguousarray(a[i : i + 1] if self.batched else a[i]) for name, a in self.feeds.items()}

    def each(self) -> Iterator[Tensors]:
        """Every request as one call, in order."""
        return (self.one(i) for i in range(len(self)))

    def take(self, indices: NDArray[np.int64]) -> Requests:
        """Some of them, in that order."""
        return Requests({name: array[indices] for name, array in self.feeds.items()}, self.batched)

    def spread(self, limit: int) -> Requests:
        """At most `limit`, evenly spread, in order."""
        return self.take(spread_indices(len(self), limit))

    @property
    def sha256(self) -> str:
        """Over names, types, shapes and values."""
        return digest_of(self.feeds, "batched" if self.batched else "whole")


def digest_of(arrays: Mapping[str, NDArray[Any]], *more: str) -> str:
    """SHA-256 over names, types, shapes and values in the order of names, and over further texts."""
    digest = hashlib.sha256("\0".join(more).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
