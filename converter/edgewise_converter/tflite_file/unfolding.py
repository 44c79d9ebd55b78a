"""Constants that are stored narrow or sparse, made plain float32 ones: what quantizers can read.

A file may keep its weights as float16 behind a DEQUANTIZE, sparse behind a DENSIFY, or both, one
after another. The operators go, and the values that they would make at every load take their place.
Weights of a float operator may be int8 too (dynamic-range quantization); they can be widened.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import ModelFileError
from edgewise_converter.tflite_file.operators import operators
from edgewise_converter.tflite_file.structure import elements
from edgewise_converter.tflite_file.tensors import DTYPES, FLOAT16, FLOAT32, INT8, is_constant, store, stored

_FOLDED: Final = ("DENSIFY", "DEQUANTIZE")


def unfold(model: Any) -> int:
    """Replace what can be replaced in a model (`ModelT`); it is changed.

    Returns:
        how many operators went.

    Raises:
        ModelFileError: a sparse constant is not in a form that is read.
    """
    gone: set[tuple[int, int]] = set()
    for operator in operators(model):
        if operator.name not in _FOLDED or not operator.builtin:
            continue
        tensors = model.subgraphs[operator.graph].tensors
        source, made = tensors[operator.inputs[0]], tensors[operator.outputs[0]]
        if not is_constant(model, source) or source.type not in (FLOAT16, FLOAT32):
            continue
        values = dense(model, source) if source.sparsity is not None else stored(model, source)
        store(model, made, values.astype(DTYPES[made.type]))
        gone.add((operator.graph, operator.position))
    for index, graph in enumerate(model.subgraphs):
        graph.operators = [op for position, op in enumerate(graph.operators or ()) if (index, position) not in gone]
    return len(gone)


def widen_weights(model: Any) -> int:
    """Make int8 constants float32 where they are the weights of operators that answer in float32.

    Returns:
        how many constants became float32; the model (`ModelT`) is changed.
    """
    found: set[tuple[int, int]] = set()
    for operator in operators(model):
        tensors = model.subgraphs[operator.graph].tensors
        if not operator.outputs or any(i >= 0 and tensors[i].type != FLOAT32 for i in operator.outputs):
            continue
        for index in operator.inputs:
            if index < 0 or tensors[index].type != INT8 or not is_constant(model, tensors[index]):
                continue
            if tensors[index].quantization is not None and tensors[index].quantization.scale:
                store(model, tensors[index], dequantized(model, tensors[index]))
                found.add((operator.graph, index))
    return len(found)


def dequantized(model: Any, tensor: Any) -> NDArray[np.float32]:
    """The real values of a quantized constant, per tensor or per channel, in one dimension."""
    quantization, shape = tensor.quantization, [int(size) for size in tensor.shape]
    scales = np.asarray(quantization.scale, np.float32)
    points = np.asarray(quantization.zeroPoint or [0], np.int64)
    values = dense(model, tensor) if tensor.sparsity is not None else stored(model, tensor)
    along = [1] * len(shape)
    if len(scales) > 1:
        along[quantization.quantizedDimension] = -1
    points = np.broadcast_to(points, scales.shape)
    real = (values.reshape(shape).astype(np.int64) - points.reshape(along)) * scales.reshape(along)
    return real.astype(np.float32).reshape(-1)


def dense(model: Any, tensor: Any) -> NDArray[Any]:
    """All elements of a sparse constant, in the order of its shape, in one dimension.

    The format (TACO's, as TFLite uses it): dimensions of the tensor, then of its blocks, are walked
    in `traversalOrder`; each is dense, or lists the indices that are there by segments.

    Raises:
        ModelFileError: an index or a segment is outside of what it indexes.
    """
    sparsity, shape = tensor.sparsity, [int(size) for size in tensor.shape]
    values = stored(model, tensor)
    blocks = [int(d) for d in sparsity.blockMap] if sparsity.blockMap is not None else []
    order = [int(d) for d in sparsity.traversalOrder]
    widths = {order[i]: int(d.denseSize) for i, d in enumerate(sparsity.dimMetadata) if order[i] >= len(shape)}
    nodes = np.zeros((1, 0), np.int64)
    """Indices walked so far, a row for each value or group of values, in the values' order."""
    places = np.zeros(1, np.int64)
    for dimension in sparsity.dimMetadata:
        if dimension.format == 0:
            size = int(dimension.denseSize)
            if len(places) * size > elements(shape):
                raise ModelFileError("a sparse constant claims more than its shape holds")
            index = np.tile(np.arange(size), len(places))
            parents = np.repeat(np.arange(len(places)), size)
            places = np.repeat(places, size) * size + index
        else:
            parents, index, places = _listed(dimension, places)
        nodes = np.concatenate([nodes[parents], index[:, None]], axis=1)
    if len(nodes) != len(values):
        raise ModelFileError(f"a sparse constant lists {len(nodes)} places for {len(values)} values")
    where = np.zeros((len(values), len(shape)), np.int64)
    for column, dimension in enumerate(order):
        if dimension < len(shape):
            width = int(np.prod([widths[len(shape) + b] for b, d in enumerate(blocks) if d == dimension]))
            where[:, dimension] += nodes[:, column] * width
        else:
            where[:, blocks[dimension - len(shape)]] += nodes[:, column]
    if len(where) and (where.max(axis=0) >= shape).any():
        raise ModelFileError("a sparse constant has an index outside of its shape")
    result = np.zeros(shape, values.dtype)
    result[tuple(where.T)] = values
    return result.reshape(-1)


def _listed(dimension: Any, places: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Parents, indices and places of a dimension that lists what is there."""
    segments = np.asarray(dimension.arraySegments.values, np.int64)
    indices = np.asarray(dimension.arrayIndices.values, np.int64)
    fits = len(segments) and (np.diff(segments) >= 0).all() and segments[0] >= 0 and segments[-1] <= len(indices)
    if not fits or len(segments) < (int(places.max(initial=-1)) + 2) or (indices < 0).any():
        raise ModelFileError("a sparse constant has a segment outside of its indices")
    starts, ends = segments[places], segments[places + 1]
    found = np.fromiter(
        itertools.chain.from_iterable(range(int(a), int(b)) for a, b in zip(starts, ends, strict=True)), np.int64
    )
    return np.repeat(np.arange(len(places)), ends - starts), indices[found], found
