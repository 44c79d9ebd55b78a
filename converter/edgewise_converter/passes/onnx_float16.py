"""ONNX float32 to float16: weights alone, or weights and arithmetic; float32 at the door."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_catalogue import OnnxFloat16Config
from edgewise_converter.passes.onnx_graph import canonical
from edgewise_converter.passes.onnx_ranges import measure
from edgewise_converter.passes.onnx_scopes import (
    Layer,
    Scope,
    chosen,
    find_layers,
    inner_graphs,
    load,
    replace_nodes,
    scopes,
)

_NAME: Final = "onnx_float16"
_LOOKED_FOR: Final = "nodes with float32 weights"
_LEAST: Final = 64
"""Weights of a tensor below which halving it saves less than the widening costs."""
_LARGEST: Final = 65504.0
_SMALLEST: Final = 5.96e-8
_STEPS: Final = ("DequantizeLinear", "DynamicQuantizeLSTM", "MatMulNBits", "QuantizeLinear")
"""Operators whose float32 constants are scales."""
_SAMPLES: Final = 64


def layers(before: Artifact) -> tuple[str, ...]:
    """What can be kept in float, by name, in the graph's order."""
    return tuple(layer.name for layer in find_layers(scopes(load(before.data, "the file")), _has_weights))


def apply(materials: Materials, before: Artifact, config: OnnxFloat16Config) -> Artifact:
    """Convert a float graph.

    Raises:
        UnchangedError: it holds no weights that float16 can.
        PassError: arithmetic in float16 does not come through graphs inside of nodes, or the converter refuses.
    """
    model = load(before.data, materials.model)
    all_scopes = scopes(model)
    found = find_layers(all_scopes, _has_weights)
    left = chosen(_NAME, found, config.keep_float, _LOOKED_FOR)
    if config.compute == "float32":
        _halve_weights(all_scopes, [layer for layer in found if layer not in left])
    else:
        model = _halve_arithmetic(model, materials, found, config)
    precision = "float16" if before.precision == "float32" else before.precision
    return Artifact(canonical(model, materials.input_names, materials.output_names), "onnx", precision)


def _weights(scope: Scope, name: str) -> Any | None:
    array = scope.array(name) if name else None
    return array if array is not None and array.size >= _LEAST and np.abs(array).max() <= _LARGEST else None


def _has_weights(scope: Scope, node: Any) -> bool:
    return node.op_type not in _STEPS and any(_weights(scope, name) is not None for name in node.input)


def _halve_weights(all_scopes: list[Scope], kept: list[Layer]) -> None:
    """Store weights in halves, and widen each where it stands; what a kept node reads stays."""
    onnx = need("onnx")
    left = {id(scope): set[str]() for scope in all_scopes}
    for layer in kept:
        for name in layer.node.input:
            left[id(_home(layer.scope, name))].add(name)
    for scope in all_scopes:
        for node in scope.graph.node:
            if node.op_type in _STEPS:
                for name in node.input:
                    left[id(_home(scope, name))].add(name)
    for scope in all_scopes:
        names = {output.name for output in scope.graph.output} | left[id(scope)]
        for tensor in list(scope.graph.initializer):
            array = None if tensor.name in names else _weights(scope, tensor.name)
            if array is None:
                continue
            half = onnx.numpy_helper.from_array(array.astype(np.float16), f"{tensor.name}_half")
            name = tensor.name
            cast = onnx.helper.make_node("Cast", [half.name], [name], name=f"{name}_widen", to=onnx.TensorProto.FLOAT)
            tensor.CopyFrom(half)
            scope.graph.node.append(cast)


def _home(scope: Scope, name: str) -> Scope:
    """The graph in which a constant stands."""
    here: Scope | None = scope
    while here is not None:
        if any(tensor.name == name for tensor in here.graph.initializer):
            return here
        here = here.parent
    return scope


def _halve_arithmetic(model: Any, materials: Materials, found: list[Layer], config: OnnxFloat16Config) -> Any:
    float16 = need("onnxruntime.transformers.float16")
    for node in model.graph.node:
        if any(inner_graphs(node)):
            raise PassError(
                f"{_NAME}: {materials.model} holds the node {node.name or node.output[0]!r} ({node.op_type}) with "
                "graphs inside, through which float16 arithmetic cannot be led: take compute='float32'"
            )
    kept = [layer.node for layer in found if layer.name in set(config.keep_float)]
    for n, node in enumerate(model.graph.node):
        node.name = f"node_{n}"
    blocked = {node.name for node in (*kept, *_overflowing(model, materials))}
    try:
        with quietly():
            halved = float16.convert_float_to_float16(
                model,
                min_positive_val=_SMALLEST,
                max_finite_val=_LARGEST,
                keep_io_types=True,
                node_block_list=sorted(blocked),
            )
    except (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise PassError(f"{materials.model} cannot be converted to float16: {error}") from error
    return _without_detours(halved)


def _without_detours(model: Any) -> Any:
    """Lead float32 values past a cast to float16 and back, in which large ones would be lost."""
    onnx = need("onnx")

    def casts(to: int) -> dict[str, str]:
        found = (node for node in model.graph.node if node.op_type == "Cast")
        return {n.output[0]: n.input[0] for n in found if any(a.name == "to" and a.i == to for a in n.attribute)}

    down, up = casts(onnx.TensorProto.FLOAT16), casts(onnx.TensorProto.FLOAT)
    past = {wide: down[half] for wide, half in up.items() if half in down}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = past.get(name, name)
        if node.op_type == "Cast" and node.output[0] in past:
            node.input[0] = past[node.output[0]]
    outputs = {output.name for output in model.graph.output}
    for _ in range(2):  # the second time those that only a cast has read
        read = {name for node in model.graph.node for name in node.input} | outputs
        replace_nodes(model.graph, [n for n in model.graph.node if n.op_type != "Cast" or n.output[0] in read])
    return model


def _overflowing(model: Any, materials: Materials) -> list[Any]:
    """Nodes that read or give values beyond float16, on the calibration requests."""
    onnx = need("onnx")
    with quietly():
        graph = onnx.shape_inference.infer_shapes(model).graph
    typed = [*graph.value_info, *graph.output]
    floats = {v.name for v in typed if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    names = [name for node in model.graph.node for name in node.output if name in floats]
    requests = materials.calibration.spread(_SAMPLES)
    ranges = measure(model, [(0, name) for name in names], requests, _SAMPLES, "minmax", 100.0)
    wide = {name for (_, name), r in ranges.items() if max(-r.low, r.high) > _LARGEST}
    wide |= {
        t.name
        for t in model.graph.initializer
        if (a := Scope(model.graph).array(t.name)) is not None and a.size and np.abs(a).max() > _LARGEST
    }
    return [node for node in model.graph.node if wide & {*node.input, *node.output}]
