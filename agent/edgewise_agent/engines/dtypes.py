"""The Open Inference Protocol's data types as NumPy's, both ways, little-endian."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import DType

NUMPY: Final[dict[DType, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}

PROTOCOL: Final[dict[np.dtype[Any], DType]] = {dtype: name for name, dtype in NUMPY.items()}


def name_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a NumPy type, or NumPy's own where the protocol has none."""
    return PROTOCOL.get(dtype, str(dtype))
