"""ONNX float32 to int4 weights by block, of matrix products: onnxruntime's MatMulNBits, and a bias of its own."""

from __future__ import annotations

from typing import Any, Final

from edgewise_converter.libraries import need
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_catalogue import OnnxInt4Config
from edgewise_converter.passes.onnx_graph import canonical
from edgewise_converter.passes.onnx_names import shorten
from edgewise_converter.passes.onnx_numbers import blocks
from edgewise_converter.passes.onnx_operators import CONTRIBUTED
from edgewise_converter.passes.onnx_products import is_product, split
from edgewise_converter.passes.onnx_scopes import (
    Scope,
    chosen,
    find_layers,
    import_domain,
    load,
    rewrite,
    scopes,
)

_NAME: Final = "onnx_int4"
_LOOKED_FOR: Final = "Gemm and MatMul with constant float32 weights"
_ACCURACY_LEVELS: Final = {"float32": 1, "int8": 4}
"""Of MatMulNBits, onnxruntime's docs/ContribOperators.md."""


def layers(before: Artifact) -> tuple[str, ...]:
    """What can be quantized, or kept in float, by name, in the graph's order."""
    return tuple(layer.name for layer in find_layers(scopes(load(before.data, "the file")), is_product))


def apply(materials: Materials, before: Artifact, config: OnnxInt4Config) -> Artifact:
    """Quantize the weights of a float graph.

    Raises:
        UnchangedError: it holds nothing that can be quantized.
        PassError: the graph is not valid.
    """
    model = load(before.data, materials.model)
    all_scopes = scopes(model)
    left = chosen(_NAME, find_layers(all_scopes, is_product), config.keep_float, _LOOKED_FOR)
    rewrite(all_scopes, left, lambda scope, node, _shared: _narrow(scope, node, config))
    import_domain(model, CONTRIBUTED)
    return Artifact(canonical(shorten(model), materials.input_names, materials.output_names), "onnx", "int4")


def _narrow(scope: Scope, node: Any, config: OnnxInt4Config) -> list[Any]:
    onnx = need("onnx")
    constant = onnx.numpy_helper.from_array
    array, bias = split(scope, node)
    packed, scale, zeros = blocks(array, config.block_size, symmetric=config.symmetric)
    name = node.output[0]
    inputs = [
        node.input[0],
        scope.add(constant(packed, f"{name}_weights_int4")),
        scope.add(constant(scale, f"{name}_weights_scale")),
    ]
    if zeros is not None:
        inputs.append(scope.add(constant(zeros, f"{name}_weights_zero")))
    last = name if bias is None else f"{name}_product"
    found = [
        onnx.helper.make_node(
            "MatMulNBits",
            inputs,
            [last],
            name=node.name or f"{name}_int4",
            domain=CONTRIBUTED,
            K=array.shape[0],
            N=array.shape[1],
            bits=4,
            block_size=config.block_size,
            accuracy_level=_ACCURACY_LEVELS[config.compute],
        )
    ]
    if bias is not None:
        added = scope.add(constant(bias, f"{name}_bias"))
        found.append(onnx.helper.make_node("Add", [last, added], [name], name=f"{name}_add"))
    return found
