"""ONNX float32 to int8: static, per channel, as QuantizeLinear / DequantizeLinear pairs.

The pairs stand where onnxruntime turns them into kernels of bytes: around convolutions and
products with constant weights, and around what lies between two of these. Values in branches are
watched too; the bodies of loops stay float. Method: Krishnamoorthi, arXiv:1806.08342.
"""

from __future__ import annotations

from typing import Any, Final

from edgewise_converter.errors import UnchangedError
from edgewise_converter.passes.artifact import Artifact, Materials
from edgewise_converter.passes.onnx_catalogue import OnnxInt8Config
from edgewise_converter.passes.onnx_chains import find as chains_of
from edgewise_converter.passes.onnx_graph import canonical
from edgewise_converter.passes.onnx_names import shorten
from edgewise_converter.passes.onnx_numbers import Affine, activation
from edgewise_converter.passes.onnx_opset import at_least
from edgewise_converter.passes.onnx_pairs import insert_pairs
from edgewise_converter.passes.onnx_ranges import Range, measure
from edgewise_converter.passes.onnx_scopes import STANDARD, Scope, attribute, chosen, find_layers, load, scopes

_NAME: Final = "onnx_int8"
_OPERATORS: Final = ("Conv", "Gemm", "MatMul")
_LOOKED_FOR: Final = "with constant float32 weights"
_PER_CHANNEL: Final = 13
"""The operator set from which scales are per channel."""


def layers(before: Artifact) -> tuple[str, ...]:
    """What can be quantized, or kept in float, by name, in the graph's order."""
    return tuple(layer.name for layer in find_layers(scopes(load(before.data, "the file")), _fits))


def apply(materials: Materials, before: Artifact, config: OnnxInt8Config) -> Artifact:
    """Quantize a float graph.

    Raises:
        UnchangedError: it holds nothing that can be quantized.
        PassError: it does not run on the calibration requests.
    """
    model = at_least(load(before.data, materials.model), _PER_CHANNEL)
    all_scopes = scopes(model)
    looked_for = f"{', '.join(config.operators)} {_LOOKED_FOR}"
    left = chosen(_NAME, find_layers(all_scopes, _fits), config.keep_float, looked_for, config.operators)
    chains = {
        scope.number: chains_of(scope, [layer.node for layer in left if layer.scope is scope], config.chained)
        for scope in all_scopes
    }
    places = [(n, name) for n, chain in chains.items() for name in dict.fromkeys(chain.narrow.values())]
    requests = materials.calibration.spread(config.calibration_samples)
    ranges = measure(model, places, requests, config.calibration_batch, config.ranges, config.percentile)
    done = 0
    for scope in all_scopes:
        chain, n = chains[scope.number], scope.number
        roots = set(chain.narrow.values())
        if not chain.heavy or any((n, root) not in ranges for root in roots):
            continue  # no request reaches this branch, so it stays float
        done += len(chain.heavy)
        affine = {root: _affine(ranges[(n, root)], root in chain.clamped, config) for root in roots}
        insert_pairs(scope, chain, affine, reduce_range=config.reduce_range, per_channel=config.per_channel)
    if not done:
        raise UnchangedError(f"{_NAME} changed nothing: it looks for {looked_for} that a calibration request reaches")
    return Artifact(canonical(shorten(model), materials.input_names, materials.output_names), "onnx", "int8")


def _affine(found: Range, clamped: bool, config: OnnxInt8Config) -> Affine:
    low = 0.0 if clamped else found.low
    symmetric = config.symmetric and not clamped  # a clamp at zero is done by rounding, where zero is the least
    return activation(low, found.high, signed=config.activations == "int8", symmetric=symmetric)


def _fits(scope: Scope, node: Any) -> bool:
    """Whether a node is a layer: its weights constant, in a form that onnxruntime computes in int8."""
    if node.op_type not in _OPERATORS or node.domain not in STANDARD or scope.repeated:
        return False
    weights = scope.array(node.input[1])
    if weights is None or not weights.size or scope.constant(node.input[0]) is not None:
        return False
    if len(node.input) > 2 and node.input[2]:
        bias = scope.array(node.input[2])
        channels = weights.shape[0] if node.op_type == "Conv" or attribute(node, "transB", 0) else weights.shape[-1]
        if bias is None or bias.reshape(-1).size != channels:
            return False
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        return plain and not attribute(node, "transA", 0)
    return weights.ndim >= 2
