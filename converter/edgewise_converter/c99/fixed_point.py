"""Real factors as integers, by the rules of TensorFlow Lite's reference kernels. Pure.

Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", and gemmlowp's fixed point.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

_SOFTMAX_INTEGER_BITS: Final = 5
_RELU, _RELU_N1_TO_1, _RELU6 = 1, 2, 3
ACTIVATIONS: Final = frozenset({0, _RELU, _RELU_N1_TO_1, _RELU6})


class Multiplier(NamedTuple):
    """`value / 2^31 * 2^shift`; value in [2^30, 2^31), or 0."""

    value: int
    shift: int


def multiplier_of(real: float) -> Multiplier:
    """A factor >= 0 as 31 bits and a power of two."""
    if real == 0.0:
        return Multiplier(0, 0)
    fraction, shift = math.frexp(real)
    value = _round(fraction * (1 << 31))
    if value == 1 << 31:
        value //= 2
        shift += 1
    if shift < -31:
        return Multiplier(0, 0)
    return Multiplier((1 << 31) - 1, 30) if shift > 30 else Multiplier(value, shift)


def activation_range(kind: int, scale: float, zero_point: int) -> tuple[int, int]:
    """The int8 values that a fused activation lets through."""

    def quantized(real: float) -> int:
        return zero_point + _round(float(np.float32(real) / np.float32(scale)))

    low, high = -128, 127
    if kind == _RELU:
        low = max(low, quantized(0.0))
    elif kind == _RELU6:
        low, high = max(low, quantized(0.0)), min(high, quantized(6.0))
    elif kind == _RELU_N1_TO_1:
        low, high = max(low, quantized(-1.0)), min(high, quantized(1.0))
    return low, high


def softmax_scaling(beta: float, scale: float) -> tuple[Multiplier, int]:
    """The factor of a difference of inputs, and the smallest difference whose exponential is not 0."""
    limit = float((1 << 31) - 1)
    factor = multiplier_of(min(beta * scale * (1 << (31 - _SOFTMAX_INTEGER_BITS)), limit))
    largest = ((1 << _SOFTMAX_INTEGER_BITS) - 1) * float(1 << (31 - _SOFTMAX_INTEGER_BITS)) / float(1 << factor.shift)
    return factor, -math.floor(largest)


def _round(value: float) -> int:
    """Half away from zero."""
    return math.floor(value + 0.5) if value >= 0 else -math.floor(-value + 0.5)
