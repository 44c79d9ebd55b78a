"""From real numbers to a file's integers and back, as TFLite's own QUANTIZE and DEQUANTIZE do. Pure.

Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", and TFLite's reference kernels: half is rounded away
from zero, and what lies outside of the type saturates.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise_agent.engines.errors import InputError


class Affine(msgspec.Struct, frozen=True):
    """real = scale * (integer - zero_point), of one tensor."""

    scale: float
    zero_point: int


def quantize(values: NDArray[Any], by: Affine, dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Real numbers of any shape as the file's integers.

    Raises:
        InputError: a value is NaN, which no integer stands for. Infinite values saturate.
    """
    scaled = np.divide(values, np.float32(by.scale), dtype=np.float32)
    if np.isnan(scaled).any():
        raise InputError(f"input {name!r} holds NaN, which the model's {dtype} input cannot represent")
    whole = np.trunc(scaled)
    with np.errstate(invalid="ignore"):
        whole += np.copysign(np.abs(scaled - whole) >= 0.5, scaled)
    limits = np.iinfo(dtype)
    shifted = whole.astype(np.float64) + by.zero_point
    saturated: NDArray[Any] = np.clip(shifted, limits.min, limits.max)
    return saturated.astype(dtype)


def dequantize(integers: NDArray[Any], by: Affine) -> NDArray[np.float32]:
    """The file's integers of any shape as real numbers."""
    centred = (integers.astype(np.int64) - by.zero_point).astype(np.float32)
    return np.multiply(centred, np.float32(by.scale), dtype=np.float32)
