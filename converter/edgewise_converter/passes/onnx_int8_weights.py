"""ONNX float32 to int8 weights per channel, which are widened again where they are used: products stay in float.

A `DequantizeLinear` stands before each layer, so that every engine that knows the operator runs the file. It costs what
widening the weights costs, and loses less than any form that quantizes activations too.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgewise_converter.libraries import need
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_catalogue import OnnxInt8WeightsConfig
from edgewise_converter.passes.onnx_graph import canonical
from edgewise_converter.passes.onnx_names import shorten
from edgewise_converter.passes.onnx_numbers import weights
from edgewise_converter.passes.onnx_opset import at_least
from edgewise_converter.passes.onnx_scopes import (
    STANDARD,
    Scope,
    attribute,
    chosen,
    find_layers,
    load,
    rewrite,
    scopes,
)

_NAME: Final = "onnx_int8_weights"
_OPSET: Final = 13
"""From which `DequantizeLinear` has a scale per channel."""
LEAST: Final = 64
"""Weights of a layer that are worth a node of their own."""
_PLACES: Final = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gather": (0,),
    "Gemm": (1,),
    "GRU": (1, 2),
    "LSTM": (1, 2),
    "MatMul": (1,),
}
"""Where an operator takes its weights."""


def layers(before: Artifact) -> tuple[str, ...]:
    """What can be quantized, or kept in float, by name, in the graph's order."""
    return tuple(layer.name for layer in find_layers(scopes(load(before.data, "the file")), _fits))


def apply(materials: Materials, before: Artifact, config: OnnxInt8WeightsConfig) -> Artifact:
    """Quantize the weights of a float graph.

    Raises:
        UnchangedError: it holds none that are worth it.
        PassError: the graph is not valid.
    """
    model = at_least(load(before.data, materials.model), _OPSET)
    all_scopes = scopes(model)
    looked_for = f"{', '.join(sorted(_PLACES))} with at least {LEAST} constant float32 weights"
    left = chosen(_NAME, find_layers(all_scopes, _fits), config.keep_float, looked_for)
    rewrite(all_scopes, left, _narrow)
    return Artifact(canonical(shorten(model), materials.input_names, materials.output_names), "onnx", "int8-dynamic")


def _fits(scope: Scope, node: Any) -> bool:
    if node.domain not in STANDARD:
        return False
    arrays = [scope.array(node.input[place]) for place in _PLACES.get(node.op_type, ()) if place < len(node.input)]
    return bool(arrays) and all(a is not None and a.ndim >= 2 and a.size >= LEAST for a in arrays)


def _narrow(scope: Scope, node: Any, widened: dict[tuple[str, int], str]) -> list[Any]:
    before = [made for place in _PLACES[node.op_type] for made in _widen(scope, node, place, widened)]
    return [*before, node]


def _widen(scope: Scope, node: Any, place: int, widened: dict[tuple[str, int], str]) -> list[Any]:
    """Have a node read widened weights; the node that widens them, unless another layer's does."""
    onnx = need("onnx")
    name = node.input[place]
    array = scope.weights(name)
    axis = _axis(node, array.ndim)
    found = []
    if (name, axis) not in widened:
        integers, scale = weights(np.ascontiguousarray(array), axis, reduce_range=False)
        stem = f"{name}_{scope.number}_axis{axis}"
        inputs = [
            scope.add(onnx.numpy_helper.from_array(integers, f"{stem}_int8")),
            scope.add(onnx.numpy_helper.from_array(scale, f"{stem}_scale")),
        ]
        widened[name, axis] = f"{stem}_widened"
        found.append(
            onnx.helper.make_node("DequantizeLinear", inputs, [widened[name, axis]], name=f"{stem}_widen", axis=axis)
        )
    node.input[place] = widened[name, axis]
    return found


def _axis(node: Any, rank: int) -> int:
    """Of the channels that have a scale of their own: those of the layer's output."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "Gather": 0, "GRU": 1, "LSTM": 1}.get(node.op_type, rank - 1)
