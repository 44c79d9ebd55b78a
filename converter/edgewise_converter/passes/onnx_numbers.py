"""From real numbers to integers with a scale: weights by channel or block, activations by their range. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_SMALLEST: Final = 1e-10
"""Of a scale: below it are rows of zeros."""
_BIAS_LIMIT: Final = float(2**30)
"""Of a bias in steps: half of what int32 holds, so that sums fit too."""


@dataclass(frozen=True, slots=True)
class Affine:
    """real = scale * (integer - zero)."""

    scale: np.float32
    zero: int
    signed: bool
    """Whether integers are of -128..127, else of 0..255."""

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        """The integers' type."""
        return np.int8 if self.signed else np.uint8


def activation(low: float, high: float, *, signed: bool, symmetric: bool) -> Affine:
    """The finest 8-bit steps that reach over a range and hit zero.

    Args:
        low, high: the range, which is widened to hold zero.
        signed: see `Affine`.
        symmetric: whether zero lies in the middle.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    least = -128 if signed else 0
    if symmetric:
        limit = max(-low, high)
        return Affine(np.float32(max(limit / 127.0, _SMALLEST)), 0 if signed else 128, signed)
    scale = np.float32(max((high - low) / 255.0, _SMALLEST))
    return Affine(scale, int(np.clip(round(least - low / float(scale)), least, least + 255)), signed)


def weights(
    array: NDArray[np.float32], axis: int | None, *, reduce_range: bool, floor: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 weights, and their scales.

    Args:
        array: the weights.
        axis: of the channels, each with its own scale; None for one scale in all.
        reduce_range: to -64..64 instead of -127..127.
        floor: (channels,) the least scales.

    Returns:
        Integers of the same shape; scales (channels,), or () without an axis.
    """
    limit = 64.0 if reduce_range else 127.0
    others = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    scale = np.maximum(np.abs(array.astype(np.float64)).max(axis=others) / limit, _SMALLEST)
    if floor is not None:
        scale = np.maximum(scale, floor if axis is not None else floor.max(initial=0.0))
    narrow = np.asarray(scale, np.float32)
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    steps = np.rint(array / narrow.reshape(shape))
    return np.clip(steps, -limit, limit).astype(np.int8), narrow


def bias_floor(bias: NDArray[np.float32], activation_scale: float) -> NDArray[np.float64]:
    """The least weight scales (channels,) with which a bias in steps of both scales fits int32."""
    return np.abs(bias.astype(np.float64)) / (_BIAS_LIMIT * activation_scale)


def bias_steps(
    bias: NDArray[np.float32], activation_scale: float, weight_scale: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A bias (channels,) as int32, and its scales: (channels,), or () where the weights have one in all."""
    scale = np.asarray(np.float32(activation_scale) * weight_scale, np.float32)
    return np.rint(bias.astype(np.float64) / scale).astype(np.int32), scale


def blocks(
    array: NDArray[np.float32], size: int, *, symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """Weights (K, N) in 4 bits, by blocks of `size` along K, as onnxruntime's MatMulNBits has them.

    Returns:
        packed: uint8 (N, ceil(K / size), size / 2), the lower half of a byte first.
        scales: float32 (N * ceil(K / size),).
        zeros: uint8 packed (N * ceil(ceil(K / size) / 2),), or None where every zero is 8.
    """
    k, n = array.shape
    count = -(-k // size)
    rows = np.zeros((n, count * size), np.float64)
    rows[:, :k] = array.T
    rows = rows.reshape(n, count, size)
    if symmetric:
        places = np.abs(rows).argmax(axis=2, keepdims=True)
        extreme = np.take_along_axis(rows, places, axis=2)
        scale = -extreme / 8.0
        zero: NDArray[Any] = np.full((n, count, 1), 8.0)
    else:
        low, high = np.minimum(rows.min(2, keepdims=True), 0.0), np.maximum(rows.max(2, keepdims=True), 0.0)
        scale = (high - low) / 15.0
        zero = np.clip(np.rint(-low / np.where(scale == 0, 1.0, scale)), 0, 15)
    scale = np.where(np.abs(scale) < _SMALLEST, _SMALLEST, scale).astype(np.float32)
    steps = np.clip(np.rint(rows / scale) + zero, 0, 15).astype(np.uint8)
    packed: NDArray[np.uint8] = steps[..., 0::2] | (steps[..., 1::2] << 4)
    zeros: NDArray[np.uint8] | None = None
    if not symmetric:
        pairs = np.full((n, count + count % 2), 8, np.uint8)
        pairs[:, :count] = zero[..., 0].astype(np.uint8)
        zeros = (pairs[:, 0::2] | (pairs[:, 1::2] << 4)).reshape(-1)
    return packed, scale.reshape(-1).astype(np.float32), zeros
