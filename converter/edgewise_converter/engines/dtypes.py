"""The Open Inference Protocol's data types as NumPy's, and back."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from edgewise_protocol.manifest import DType

NUMPY: Final[dict[DType, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
PROTOCOL: Final[dict[np.dtype[Any], DType]] = {dtype: name for name, dtype in NUMPY.items()}
