"""What the parts of a verified file say of each other: indices, sizes, the order of operators.

LiteRT takes most of it on trust. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from edgewise_converter.errors import ModelFileError

BITS: Final[dict[int, int]] = {
    0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 8: 64, 9: 8, 10: 64, 11: 128, 12: 64, 15: 32, 16: 16, 17: 4,
    18: 16, 19: 2, 20: 4, 21: 8, 22: 8,
}  # fmt: skip
"""Width of an element by `TensorType`; texts, resources and variants have none."""
MAX_TENSOR_BYTES: Final = 1 << 31
MAX_RANK: Final = 16
MAX_GRAPHS: Final = 1000
"""A branch or a loop takes two."""
_CALLS: Final = ("thenSubgraphIndex", "elseSubgraphIndex", "condSubgraphIndex", "bodySubgraphIndex",
                 "initSubgraphIndex", "decompositionSubgraphIndex")  # fmt: skip
"""Fields of operator options that name another graph of the file."""


def check(model: Any) -> None:
    """Hold a read model (`ModelT`) against itself.

    Raises:
        ModelFileError: what in it cannot be, without the file's name.
    """
    if model.version != 3:
        raise ModelFileError(f"its schema is of version {model.version}; version 3 is read")
    if not model.subgraphs or not model.buffers:
        raise ModelFileError("it holds no graph or no buffers")
    if len(model.subgraphs) > MAX_GRAPHS:
        raise ModelFileError(f"it holds {len(model.subgraphs)} graphs; {MAX_GRAPHS} are taken")
    if model.externalBuffers or model.externalBufferGroups:
        raise ModelFileError("it keeps weights in another file; a bundle holds one file: export it with weights inside")
    for index, graph in enumerate(model.subgraphs):
        try:
            _graph(model, graph)
        except ModelFileError as error:
            raise ModelFileError(f"graph {index}: {error}") from error
    _calls(model)
    for signature in _items(model.signatureDefs):
        _index(signature.subgraphIndex, len(model.subgraphs), "a signature's graph")
        tensors = _items(model.subgraphs[signature.subgraphIndex].tensors)
        for entry in (*_items(signature.inputs), *_items(signature.outputs)):
            _index(entry.tensorIndex, len(tensors), "a signature's tensor")


def elements(shape: Iterable[int] | None) -> int:
    """How many elements a tensor of this shape has; one without a shape is a number by itself."""
    return math.prod(int(size) for size in shape) if shape is not None else 1


def _items(found: Any) -> Sequence[Any]:
    return () if found is None else found


def _index(value: int, count: int, what: str) -> None:
    if not 0 <= int(value) < count:
        raise ModelFileError(f"{what} is number {int(value)} of {count}")


def _graph(model: Any, graph: Any) -> None:
    tensors = _items(graph.tensors)
    for position, tensor in enumerate(tensors):
        try:
            _tensor(model, tensor)
        except ModelFileError as error:
            raise ModelFileError(f"tensor {position} ({_text(tensor.name)}): {error}") from error
    for index in (*_items(graph.inputs), *_items(graph.outputs)):
        _index(index, len(tensors), "an input or output of the graph")
    known = {int(index) for index in _items(graph.inputs)}
    known |= {i for i, t in enumerate(tensors) if t.isVariable or _data(model, t) is not None}
    for position, operator in enumerate(_items(graph.operators)):
        try:
            _operator(model, operator, len(tensors), known)
        except ModelFileError as error:
            raise ModelFileError(f"operator {position}: {error}") from error
    if missing := [int(i) for i in _items(graph.outputs) if int(i) not in known]:
        raise ModelFileError(f"nothing makes its output, tensor {missing[0]}")


def _operator(model: Any, operator: Any, tensors: int, known: set[int]) -> None:
    _index(operator.opcodeIndex, len(_items(model.operatorCodes)), "its code")
    for index in _items(operator.inputs):
        if int(index) == -1:
            continue
        _index(index, tensors, "an input of it")
        if int(index) not in known:
            raise ModelFileError(f"it reads tensor {int(index)}, which nothing before it makes")
    for index in (*_items(operator.outputs), *_items(operator.intermediates)):
        if int(index) != -1:
            _index(index, tensors, "an output of it")
            known.add(int(index))


def _tensor(model: Any, tensor: Any) -> None:
    _index(tensor.buffer, len(model.buffers), "its buffer")
    shape = [int(size) for size in _items(tensor.shape)]
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise ModelFileError(f"its shape is {shape}")
    bits = BITS.get(tensor.type)
    size = -(-elements(shape) * bits // 8) if bits else 0
    if size > MAX_TENSOR_BYTES:
        raise ModelFileError(f"it claims {size} bytes; {MAX_TENSOR_BYTES} are taken")
    if tensor.sparsity is not None:
        _sparsity(tensor.sparsity, shape)
    elif (data := _data(model, tensor)) is not None and bits and len(data) != size:
        raise ModelFileError(f"its shape {shape} needs {size} bytes, and {len(data)} are there")
    if tensor.quantization is not None:
        _quantization(tensor.quantization, shape)


def _data(model: Any, tensor: Any) -> Any:
    data = model.buffers[tensor.buffer].data
    return None if data is None or len(data) == 0 else data


def _quantization(quantization: Any, shape: list[int]) -> None:
    if quantization.detailsType:
        return  # kinds of their own, whose scales are tensors
    scales, points = (np.asarray(_items(found)) for found in (quantization.scale, quantization.zeroPoint))
    if not len(scales):
        return
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise ModelFileError("its scale is negative, NaN or infinite")
    if len(points) not in (0, 1, len(scales)):
        raise ModelFileError(f"it has {len(scales)} scales and {len(points)} zero points")
    if len(scales) > 1:
        _index(quantization.quantizedDimension, len(shape), "its quantized dimension")
        if shape[quantization.quantizedDimension] != len(scales):
            raise ModelFileError(f"it has {len(scales)} scales for a shape {shape}")


def _sparsity(sparsity: Any, shape: list[int]) -> None:
    order = [int(i) for i in _items(sparsity.traversalOrder)]
    blocks = [int(i) for i in _items(sparsity.blockMap)]
    dimensions = _items(sparsity.dimMetadata)
    if sorted(order) != list(range(len(shape) + len(blocks))) or len(dimensions) != len(order):
        raise ModelFileError("the order of its sparse dimensions does not fit its shape")
    for block in blocks:
        _index(block, len(shape), "a sparse block's dimension")
    for dimension in dimensions:
        if dimension.denseSize < 0 or (dimension.format and None in (dimension.arraySegments, dimension.arrayIndices)):
            raise ModelFileError("a sparse dimension of it is incomplete")


def _calls(model: Any) -> None:
    """Graphs that operators run must be there, and must not run themselves."""
    called: list[set[int]] = []
    for graph in model.subgraphs:
        found: set[int] = set()
        for operator in _items(graph.operators):
            for options in (operator.builtinOptions, operator.builtinOptions2):
                for field in _CALLS:
                    if (index := getattr(options, field, None)) is not None:
                        _index(index, len(model.subgraphs), "a graph that an operator runs")
                        found.add(int(index))
        called.append(found)
    callers: list[list[int]] = [[] for _ in called]
    for index, found in enumerate(called):
        for inner in found:
            callers[inner].append(index)
    left = [len(found) for found in called]
    ready = [index for index, count in enumerate(left) if not count]
    done = 0
    while ready:
        done += 1
        for caller in callers[ready.pop()]:
            left[caller] -= 1
            if not left[caller]:
                ready.append(caller)
    if done != len(called):
        raise ModelFileError("its graphs run each other in a circle")


def _text(name: Any) -> str:
    return bytes(name).decode("utf-8", "replace")[:80] if name else "without a name"
