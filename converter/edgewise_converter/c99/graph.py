"""An int8 TFLite file as the graph that C code is generated from: read, trimmed and held against what C can do. Pure.

Where a file takes or gives real numbers through a QUANTIZE at its start or a DEQUANTIZE at its
end, the graph begins and ends with the integers between: whoever calls the code converts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import PassError
from edgewise_converter.tflite_file.operators import operators
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.tensors import DTYPES, is_constant, stored

MAX_CONSTANT_BYTES: Final = 16 << 20
MAX_TENSOR_ELEMENTS: Final = 1 << 24
MAX_RANK: Final = 6
MAX_TENSORS: Final = 8
"""Inputs, and outputs, of one model."""
_FLOAT: Final = np.dtype(np.float32)
_INT8: Final = np.dtype(np.int8)
_SMALLEST_SCALE: Final = 2.0**-120
"""Below which factors leave float32."""


class UnsupportedModelError(PassError):
    """A model cannot become C99: which operator, where, and what to do is in the message."""

    code = "c99-unsupported"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the graph."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scales: tuple[float, ...]
    """None, one, or one a channel; float32 values."""
    zero_points: tuple[int, ...]
    axis: int
    """Of the channels, where there are several scales."""
    data: NDArray[Any] | None
    """Of a constant, in its shape."""

    @property
    def size(self) -> int:
        """Elements; bytes of an int8 tensor."""
        return math.prod(self.shape)

    @property
    def scale(self) -> float:
        """Of a tensor with one scale."""
        return self.scales[0]

    @property
    def zero_point(self) -> int:
        """Of a tensor with one scale."""
        return self.zero_points[0]


@dataclass(frozen=True, slots=True)
class Op:
    """One operator, in the order in which they run."""

    kind: str
    place: str
    """For messages."""
    inputs: tuple[int, ...]
    """Tensors; -1 where an optional one is not there."""
    outputs: tuple[int, ...]
    options: Any

    def option(self, name: str, default: Any = 0) -> Any:
        """A setting of the operator, or its default where the file leaves it out."""
        return default if self.options is None else getattr(self.options, name, default)


@dataclass(frozen=True, slots=True)
class Graph:
    """What is computed."""

    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_names: tuple[str, ...]
    """As the client knows them."""
    output_names: tuple[str, ...]


def refuse(op: Op, why: str, mend: str) -> UnsupportedModelError:
    """An error that says which operator, where, why and what to do."""
    return UnsupportedModelError(f"{op.place} cannot become C99: {why}; {mend}")


def load(data: bytes, name: str = "the model") -> Graph:
    """Read a file.

    Raises:
        ModelFileError: it is damaged.
        UnsupportedModelError: it is not full int8, or has what C code here cannot express.
    """
    model = read(data, name)
    if len(model.subgraphs) != 1:
        raise UnsupportedModelError(
            f"{name} holds {len(model.subgraphs)} graphs; C99 is made of one: export it without control flow"
        )
    graph = model.subgraphs[0]
    if any(tensor.isVariable for tensor in graph.tensors):
        raise UnsupportedModelError(
            f"{name} keeps state in variables; C99 is made of graphs without: give the state in and out as tensors"
        )
    tensors = tuple(_tensor(model, tensor) for tensor in graph.tensors)
    total = sum(tensor.data.nbytes for tensor in tensors if tensor.data is not None)
    if total > MAX_CONSTANT_BYTES:
        raise UnsupportedModelError(
            f"{name} holds {total} bytes of weights; microcontrollers here take {MAX_CONSTANT_BYTES} at most"
        )
    ops = tuple(
        Op(found.name, found.place, found.inputs, found.outputs, raw.builtinOptions)
        for found, raw in zip(operators(model), graph.operators, strict=True)
    )
    names = _names(model, tensors)
    inputs, outputs = [int(i) for i in graph.inputs], [int(i) for i in graph.outputs]
    trimmed = _trim(tensors, ops, inputs, outputs)
    found = Graph(
        tensors,
        trimmed[0],
        trimmed[1],
        trimmed[2],
        tuple(names.get(i, tensors[i].name) for i in inputs),
        tuple(names.get(i, tensors[i].name) for i in outputs),
    )
    _check(found, name)
    return found


def _tensor(model: Any, raw: Any) -> Tensor:
    shape = tuple(int(size) for size in (raw.shape if raw.shape is not None else ()))
    dtype = np.dtype(DTYPES.get(raw.type, np.void))
    quantization = raw.quantization
    scales = () if quantization is None or quantization.scale is None else tuple(float(s) for s in quantization.scale)
    points = () if quantization is None or quantization.zeroPoint is None else tuple(quantization.zeroPoint)
    data = None
    if is_constant(model, raw) and raw.type in DTYPES and raw.sparsity is None:
        flat = stored(model, raw)
        if flat.size == math.prod(shape):
            data = flat.reshape(shape)
    return Tensor(
        name=bytes(raw.name or b"").decode("utf-8", "replace"),
        shape=shape,
        dtype=dtype,
        scales=tuple(float(np.float32(s)) for s in scales),
        zero_points=tuple(int(p) for p in points) or (0,) * len(scales),
        axis=int(quantization.quantizedDimension) if quantization is not None else 0,
        data=data,
    )


def _names(model: Any, tensors: Sequence[Tensor]) -> dict[int, str]:
    """Names of inputs and outputs by the file's only signature, as LiteRT's users know them."""
    signatures: list[Any] = list(model.signatureDefs or ())
    if len(signatures) != 1:
        return {}
    entries: list[Any] = [*(signatures[0].inputs or ()), *(signatures[0].outputs or ())]
    return {int(e.tensorIndex): bytes(e.name or b"").decode("utf-8", "replace") for e in entries}


def _trim(
    tensors: Sequence[Tensor], ops: Sequence[Op], inputs: Sequence[int], outputs: Sequence[int]
) -> tuple[tuple[Op, ...], tuple[int, ...], tuple[int, ...]]:
    """Leave out a QUANTIZE of real inputs and a DEQUANTIZE to real outputs."""
    kept = list(ops)
    taken, given = list(inputs), list(outputs)
    for place, index in enumerate(inputs):
        users = [op for op in kept if index in op.inputs]
        if tensors[index].dtype == _FLOAT and len(users) == 1 and users[0].kind == "QUANTIZE":
            kept.remove(users[0])
            taken[place] = users[0].outputs[0]
    for place, index in enumerate(outputs):
        makers = [op for op in kept if index in op.outputs]
        used = any(index in op.inputs for op in kept)
        if tensors[index].dtype == _FLOAT and not used and len(makers) == 1 and makers[0].kind == "DEQUANTIZE":
            kept.remove(makers[0])
            given[place] = makers[0].inputs[0]
    return tuple(kept), tuple(taken), tuple(given)


def _check(graph: Graph, name: str) -> None:
    for indices, what in ((graph.inputs, "input"), (graph.outputs, "output")):
        if not 1 <= len(indices) <= MAX_TENSORS or len(set(indices)) != len(indices):
            raise UnsupportedModelError(
                f"{name} has {len(indices)} {what}s, or one twice; 1 to {MAX_TENSORS} are taken"
            )
        for index in indices:
            if graph.tensors[index].data is not None:
                raise UnsupportedModelError(f"{name} names a constant as its {what}")
    for index in (*graph.inputs, *graph.outputs):
        why = activation_fault(graph.tensors[index])
        if why:
            raise UnsupportedModelError(
                f"{name}: the tensor {graph.tensors[index].name[:80]!r} {why}; "
                "quantize the model to full int8 first (pass tflite_int8)"
            )
    made = set(graph.inputs)
    for op in graph.ops:
        for index in op.outputs:
            if index in made or graph.tensors[index].data is not None:
                raise refuse(op, f"tensor {index}, its output, has a value before it", "the file is damaged")
            made.add(index)
            why = activation_fault(graph.tensors[index])
            if why:
                raise refuse(op, f"its output {why}", "quantize the model to full int8 first (pass tflite_int8)")


def activation_fault(tensor: Tensor) -> str | None:
    """Why a tensor cannot be an activation in C; None where it can."""
    if tensor.dtype != _INT8:
        return f"is {tensor.dtype}, not int8"
    if len(tensor.scales) != 1 or not _SMALLEST_SCALE <= tensor.scale < math.inf:
        return f"has {len(tensor.scales)} scales, or one that is not positive, or next to 0"
    if not -128 <= tensor.zero_point <= 127:
        return f"has the zero point {tensor.zero_point}, which is no int8"
    if not tensor.shape or len(tensor.shape) > MAX_RANK or min(tensor.shape) < 1 or tensor.size > MAX_TENSOR_ELEMENTS:
        return f"has the shape {list(tensor.shape)}; 1 to {MAX_RANK} fixed dimensions are needed"
    return None
