"""Which tensors of a graph become int8: what heavy operators read and give, and what lies between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from edgewise_converter.passes.onnx_scopes import STANDARD, Scope, attribute, readers

MOVING: Final = frozenset(
    {"DepthToSpace", "Flatten", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Their values are of their first input's, so they keep its scale."""
MIXING: Final = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "Mul"})
"""onnxruntime computes them in int8 from inputs of different scales."""
_CLAMPS: Final = frozenset({"Clip", "Relu"})
_ALWAYS_NARROW: Final = frozenset({"Conv"})
"""In int8 only with an int8 output; the others can give float32 as well."""


@dataclass
class Chain:
    """What is int8 in one graph.

    Attributes:
        heavy: the layers, by their output's name.
        narrow: tensors that are int8, in the graph's order; the value is the tensor whose scale each has.
        clamped: those that come out of a Relu or Clip at zero.
        between: nodes between layers that are int8 too, by their first output.
    """

    heavy: dict[str, Any] = field(default_factory=dict)
    narrow: dict[str, str] = field(default_factory=dict)
    clamped: set[str] = field(default_factory=set)
    between: dict[str, Any] = field(default_factory=dict)

    def reads_narrow(self, node: Any) -> bool:
        """Whether a node takes its float inputs as int8."""
        return bool(node.output) and (node.output[0] in self.heavy or node.output[0] in self.between)


def find(scope: Scope, heavy: list[Any], chained: bool) -> Chain:
    """Plan one graph.

    Args:
        scope: the graph.
        heavy: nodes to quantize, in its order.
        chained: whether what lies between them becomes int8 too.
    """
    graph = scope.graph
    used = readers(graph)
    chain = Chain(heavy={node.output[0]: node for node in heavy})
    ends = {node.output[0]: _end(scope, node.output[0], used) for node in heavy}
    candidates: dict[str, Any] = {}
    could = {node.input[0] for node in heavy} | set(ends.values())
    if chained:
        for node in graph.node:
            if node.domain not in STANDARD or node.output[0] in chain.heavy:
                continue
            if node.op_type in MOVING and node.input[0] in could and len(node.output) == 1:
                candidates[node.output[0]] = node
                could.add(node.output[0])
            elif node.op_type in MIXING and _mixes(scope, node, could):
                candidates[node.output[0]] = node
                could.add(_end(scope, node.output[0], used))
    wanted = _wanted(graph, heavy, candidates, used, scope)
    chain.between = {name: node for name, node in candidates.items() if name in wanted}
    for node in graph.node:
        if not chain.reads_narrow(node):
            continue
        out = node.output[0]
        for name in _float_inputs(scope, node):
            chain.narrow.setdefault(name, name)
        if node.op_type in MOVING and out in chain.between:
            chain.narrow[out] = chain.narrow[node.input[0]]
        elif (
            node.op_type in _ALWAYS_NARROW
            or out in chain.between
            or _feeds(chain, used.get(_end(scope, out, used), []))
        ):
            end = _end(scope, out, used)
            chain.narrow.setdefault(end, end)
            if end != out:
                chain.clamped.add(end)
    return chain


def _wanted(
    graph: Any, heavy: list[Any], candidates: dict[str, Any], used: dict[str, list[Any]], scope: Scope
) -> set[str]:
    """Those between from which a way leads to a layer through others of them."""
    found = set[str]()
    heavy_names = {node.output[0] for node in heavy}
    for node in reversed(list(graph.node)):
        name = node.output[0] if node.output else ""
        if name not in candidates:
            continue
        end = _end(scope, name, used)
        if any(
            r is not None and r.output and (r.output[0] in heavy_names or r.output[0] in found)
            for r in used.get(end, [])
        ):
            found.add(name)
        elif node.op_type in ("GlobalAveragePool", "AveragePool"):
            found.add(name)  # it makes the tensor that is turned to float a small one
    return found


def _feeds(chain: Chain, nodes: list[Any]) -> bool:
    return any(node is not None and chain.reads_narrow(node) for node in nodes)


def _float_inputs(scope: Scope, node: Any) -> list[str]:
    """Inputs that are activations: of a layer its first, of what mixes all that are no constants."""
    if node.op_type in MIXING:
        return [name for name in node.input if name and scope.constant(name) is None]
    return [node.input[0]]


def _mixes(scope: Scope, node: Any, could: set[str]) -> bool:
    values = [name for name in node.input if scope.constant(name) is None]
    constants = [scope.array(name) for name in node.input if scope.constant(name) is not None]
    if node.op_type == "AveragePool" and attribute(node, "ceil_mode", 0):
        return False
    return bool(values) and all(name in could for name in values) and all(a is not None and a.size for a in constants)


def _end(scope: Scope, name: str, used: dict[str, list[Any]]) -> str:
    """Where a node's value becomes int8: behind a clamp that rounding does by itself."""
    following = used.get(name, [])
    if len(following) != 1 or following[0] is None or following[0].op_type not in _CLAMPS:
        return name
    clamp = following[0]
    if clamp.op_type == "Clip":
        low = scope.array(clamp.input[1]) if len(clamp.input) > 1 and clamp.input[1] else None
        if low is None or low.size != 1 or not np.all(low == 0.0):
            return name
    return str(clamp.output[0])
