"""How the integers of a TFLite file's tensors stand for real numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import EngineError

Array = NDArray[np.float32]


class Affine(NamedTuple):
    """real = scale * (stored - zero_point)"""

    scale: float
    zero_point: int

    def quantize(self, x: Array, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Nearest stored values, saturated."""
        limits = np.iinfo(dtype)
        stored = np.rint(x / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(stored, limits.min, limits.max), dtype=dtype)

    def dequantize(self, stored: NDArray[Any]) -> Array:
        """Real values."""
        return ((stored.astype(np.int32) - self.zero_point) * np.float32(self.scale)).astype(np.float32)


def affine_of(details: Mapping[str, Any]) -> Affine | None:
    """How a tensor of integers stands for real numbers; None for one of real numbers."""
    if np.dtype(details["dtype"]).kind == "f":
        return None
    scales = details["quantization_parameters"]["scales"]
    points = details["quantization_parameters"]["zero_points"]
    if len(scales) != 1 or len(points) != 1 or not scales[0] > 0:
        raise EngineError(f"the integer tensor {details['name']!r} has no scale of its own")
    return Affine(float(scales[0]), int(points[0]))
