"""Real numbers as a firmware's integers and back, as the gateway's agent does it. Pure.

Half is rounded away from zero, as TFLite's own QUANTIZE does; what lies outside saturates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from edgewise_protocol.firmware import FirmwareTensor
from numpy.typing import NDArray

from edgewise_converter.errors import SampleError


def quantize(values: NDArray[Any], tensor: FirmwareTensor) -> NDArray[np.int8]:
    """Integers of real numbers of any shape; raises `SampleError` for NaN."""
    scaled = np.divide(values, np.float32(tensor.scale), dtype=np.float32)
    if np.isnan(scaled).any():
        raise SampleError(f"the input {tensor.name[:80]!r} holds NaN, which no integer stands for")
    whole = np.trunc(scaled)
    with np.errstate(invalid="ignore"):
        whole += np.copysign(np.abs(scaled - whole) >= 0.5, scaled)
    shifted: NDArray[Any] = np.clip(whole.astype(np.float64) + tensor.zero_point, -128, 127)
    return shifted.astype(np.int8)


def dequantize(integers: NDArray[np.int8], tensor: FirmwareTensor) -> NDArray[np.float32]:
    """Real numbers of integers of any shape."""
    centred = (integers.astype(np.int32) - tensor.zero_point).astype(np.float32)
    return np.multiply(centred, np.float32(tensor.scale), dtype=np.float32)
