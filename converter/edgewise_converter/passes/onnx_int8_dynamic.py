"""ONNX float32 to int8 weights per channel; activations are quantized as they come.

Products become DynamicQuantizeLinear and MatMulInteger, which onnxruntime joins into one kernel;
an LSTM becomes onnxruntime's own DynamicQuantizeLSTM. Works in branches and in the bodies of loops.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgewise_converter.libraries import need
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_catalogue import OnnxInt8DynamicConfig
from edgewise_converter.passes.onnx_graph import canonical
from edgewise_converter.passes.onnx_names import shorten
from edgewise_converter.passes.onnx_numbers import weights
from edgewise_converter.passes.onnx_operators import CONTRIBUTED
from edgewise_converter.passes.onnx_opset import at_least
from edgewise_converter.passes.onnx_products import is_product, split
from edgewise_converter.passes.onnx_scopes import (
    Scope,
    attribute,
    chosen,
    find_layers,
    import_domain,
    load,
    rewrite,
    scopes,
)

_NAME: Final = "onnx_int8_dynamic"
_LOOKED_FOR: Final = "with constant float32 weights"
_OPSET: Final = 13
_LSTM_INPUTS: Final = 8
_CONSTANT_INPUTS: Final = (1, 2, 3, 7)
"""Of an LSTM: weights, recurrence, bias, peepholes."""


def layers(before: Artifact) -> tuple[str, ...]:
    """What can be quantized, or kept in float, by name, in the graph's order."""
    return tuple(layer.name for layer in find_layers(scopes(load(before.data, "the file")), _fits))


def apply(materials: Materials, before: Artifact, config: OnnxInt8DynamicConfig) -> Artifact:
    """Quantize the weights of a float graph.

    Raises:
        UnchangedError: it holds nothing that can be quantized.
        PassError: the graph is not valid.
    """
    model = at_least(load(before.data, materials.model), _OPSET)
    all_scopes = scopes(model)
    looked_for = f"{', '.join(config.operators)} {_LOOKED_FOR}"
    left = chosen(_NAME, find_layers(all_scopes, _fits), config.keep_float, looked_for, config.operators)

    def narrow(scope: Scope, node: Any, shared: dict[str, tuple[str, str, str]]) -> list[Any]:
        if node.op_type == "LSTM":
            return _lstm(scope, node, config.reduce_range)
        return _product(scope, node, config, shared)

    rewrite(all_scopes, left, narrow)
    if any(layer.node.op_type == "LSTM" for layer in left):
        import_domain(model, CONTRIBUTED)
    precision = "int8-dynamic" if before.precision != "int8" else before.precision
    return Artifact(canonical(shorten(model), materials.input_names, materials.output_names), "onnx", precision)


def _fits(scope: Scope, node: Any) -> bool:
    if node.op_type != "LSTM":
        return is_product(scope, node)
    inputs = [*node.input, *[""] * (_LSTM_INPUTS - len(node.input))]
    w, r = scope.array(inputs[1]), scope.array(inputs[2])
    return (
        w is not None
        and r is not None
        and all(not inputs[place] or scope.array(inputs[place]) is not None for place in _CONSTANT_INPUTS)
        and not attribute(node, "layout", 0)
    )


def _product(
    scope: Scope, node: Any, config: OnnxInt8DynamicConfig, shared: dict[str, tuple[str, str, str]]
) -> list[Any]:
    """A product as one of integers: scale_a * scale_b * (A - zero_a) B, and the bias."""
    onnx = need("onnx")
    make, constant = onnx.helper.make_node, onnx.numpy_helper.from_array
    array, bias = split(scope, node)
    integers, scale = weights(array, 1 if config.per_channel else None, reduce_range=config.reduce_range)
    name, source = node.output[0], node.input[0]
    nodes = []
    if source not in shared:
        shared[source] = (f"{name}_input_int8", f"{name}_input_scale", f"{name}_input_zero")
        nodes.append(make("DynamicQuantizeLinear", [source], list(shared[source]), name=f"{name}_quantize"))
    narrow, step, zero = shared[source]
    b = scope.add(constant(integers, f"{name}_weights_integers"))
    b_scale = scope.add(constant(scale, f"{name}_weights_scale"))
    b_zero = scope.add(constant(np.zeros(scale.shape, np.int8), f"{name}_weights_zero"))
    last = name if bias is None else f"{name}_product"
    nodes += [
        make("MatMulInteger", [narrow, b, zero, b_zero], [f"{name}_int32"], name=f"{name}_integer"),
        make("Cast", [f"{name}_int32"], [f"{name}_steps"], name=f"{name}_cast", to=onnx.TensorProto.FLOAT),
        make("Mul", [step, b_scale], [f"{name}_scale"], name=f"{name}_scales"),
        make("Mul", [f"{name}_steps", f"{name}_scale"], [last], name=f"{name}_rescale"),
    ]
    if bias is not None:
        nodes.append(make("Add", [last, scope.add(constant(bias, f"{name}_bias"))], [name], name=f"{name}_add"))
    return nodes


def _lstm(scope: Scope, node: Any, reduce_range: bool) -> list[Any]:
    """An LSTM with weights as onnxruntime's takes them: (directions, inputs, 4 * hidden), scales per column."""
    onnx = need("onnx")
    name = next(output for output in node.output if output)
    inputs = [*node.input, *[""] * (_LSTM_INPUTS - len(node.input))]
    more: list[str] = []
    for place, called in ((1, "weights"), (2, "recurrence")):
        array = scope.weights(inputs[place])
        rows = [weights(np.ascontiguousarray(part.T), 1, reduce_range=reduce_range) for part in array]
        integers, scale = (np.stack([row[i] for row in rows]) for i in (0, 1))
        inputs[place] = scope.add(onnx.numpy_helper.from_array(integers, f"{name}_{called}_integers"))
        more.append(scope.add(onnx.numpy_helper.from_array(scale, f"{name}_{called}_scale")))
        zero = np.zeros(scale.shape, np.int8)
        more.append(scope.add(onnx.numpy_helper.from_array(zero, f"{name}_{called}_zero")))
    kept = [a for a in node.attribute if a.name != "layout"]
    found = onnx.helper.make_node(
        "DynamicQuantizeLSTM", [*inputs, *more], list(node.output), name=node.name, domain=CONTRIBUTED
    )
    found.attribute.extend(kept)
    return [found]
