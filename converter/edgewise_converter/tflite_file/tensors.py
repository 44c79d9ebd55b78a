"""Values of constant tensors, and putting others in their place."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.libraries import need

FLOAT32: Final = 0
FLOAT16: Final = 1
INT8: Final = 9
DTYPES: Final[dict[int, Any]] = {
    FLOAT32: np.float32,
    FLOAT16: np.float16,
    2: np.int32,
    3: np.uint8,
    4: np.int64,
    6: np.bool_,
    7: np.int16,
    INT8: np.int8,
    10: np.float64,
    12: np.uint64,
    15: np.uint32,
    16: np.uint16,
}
"""NumPy's types by `TensorType`, for those that it has."""


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether the tensor's values stand in the file."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0 and not tensor.isVariable


def stored(model: Any, tensor: Any) -> NDArray[Any]:
    """A constant's elements as they are stored, in one dimension; of a sparse one those that are there."""
    return np.frombuffer(memoryview(model.buffers[tensor.buffer].data).cast("B"), DTYPES[tensor.type])


def store(model: Any, tensor: Any, values: NDArray[Any]) -> None:
    """Give a tensor values of its own, and their type; its shape stays."""
    schema = need("ai_edge_litert.schema_py_generated")
    (tensor.type,) = (code for code, dtype in DTYPES.items() if np.dtype(dtype) == values.dtype)
    tensor.buffer = len(model.buffers)
    model.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
    tensor.sparsity = tensor.quantization = None
