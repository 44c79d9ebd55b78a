"""A data set in memory: checked arrays, their origin, and a fingerprint of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_trainer.errors import DataError

MAX_LABELS: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples and integer classes, split in a training and a held-out part.

    Args:
        x_train, x_test: float32, shape (N, ...), finite, at least one sample each.
        y_train, y_test: int64, shape (N,), in [0, len(labels)).
        labels: the classes' names.
        origin: names the source that the ids count in; empty where there are none.
        train_ids, test_ids: int64, shape (N,): which source item each sample was made from. A
            rotated image has the id of its original, so a leak can be seen across domains.

    Raises:
        DataError: an array breaks these rules, or a source item is on both sides of the split.
    """

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    labels: tuple[str, ...]
    origin: str = ""
    train_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    test_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        if not 2 <= len(self.labels) <= MAX_LABELS or not all(isinstance(v, str) for v in self.labels):
            raise DataError(f"a data set has 2 to {MAX_LABELS} labels, all of them strings")
        _check_part("train", self.x_train, self.y_train, len(self.labels))
        _check_part("test", self.x_test, self.y_test, len(self.labels))
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise DataError(f"training samples are {self.x_train.shape[1:]}, held-out {self.x_test.shape[1:]}")
        if self.origin and (len(self.train_ids) != len(self.y_train) or len(self.test_ids) != len(self.y_test)):
            raise DataError("a data set with an origin names the source item of every sample")
        check_disjoint(self, self)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(int(n) for n in self.x_train.shape[1:])

    @property
    def sizes(self) -> dict[str, int]:
        """Samples in each part."""
        return {"train": len(self.y_train), "test": len(self.y_test)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the arrays, and the labels."""
        arrays: Mapping[str, NDArray[Any]] = {
            "x_train": self.x_train,
            "y_train": self.y_train,
            "x_test": self.x_test,
            "y_test": self.y_test,
        }
        digest = hashlib.sha256("\0".join(("edgewise-data-1", *self.labels)).encode())
        for name, array in arrays.items():
            little = array.dtype.newbyteorder("<")
            digest.update(f"\n{name} {little.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array, dtype=little).data)
        return digest.hexdigest()


def check_disjoint(trained: Dataset, judged: Dataset) -> None:
    """Raise `DataError` if a source item that `judged` holds out is trained on in `trained`."""
    if trained.origin and trained.origin == judged.origin:
        shared = np.intersect1d(trained.train_ids, judged.test_ids)
        if shared.size:
            raise DataError(
                f"{shared.size} held-out items of {judged.origin!r} are also trained on (first: {shared[0]}); "
                "use the same split seed and test_fraction"
            )


def stratified_split(
    y: NDArray[np.int64], test_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of training and held-out samples, sorted; each class is split by itself.

    A class of at least two samples has at least one on each side.
    """
    random = np.random.default_rng(seed)
    test: list[NDArray[np.int64]] = []
    for label in np.unique(y):
        members = random.permutation(np.flatnonzero(y == label))
        wanted = max(1, round(test_fraction * len(members))) if len(members) > 1 else 0
        test.append(members[: min(wanted, len(members) - 1)])
    held = np.sort(np.concatenate(test)).astype(np.int64)
    return np.setdiff1d(np.arange(len(y), dtype=np.int64), held), held


def _check_part(part: str, x: NDArray[Any], y: NDArray[Any], labels: int) -> None:
    if x.dtype != np.float32 or x.ndim < 2 or 0 in x.shape:
        raise DataError(f"x_{part} must be float32 of shape (N, ...), not {x.dtype} {x.shape}")
    if y.dtype != np.int64 or y.shape != (len(x),):
        raise DataError(f"y_{part} must be int64 of shape ({len(x)},), not {y.dtype} {y.shape}")
    if not np.isfinite(x).all():
        raise DataError(f"x_{part} holds values that are not finite")
    if y.min() < 0 or y.max() >= labels:
        raise DataError(f"y_{part} holds classes from {y.min()} to {y.max()}; there are {labels} labels")
