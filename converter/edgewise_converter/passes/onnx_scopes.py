"""Walking an ONNX model: its graph, the graphs inside of its nodes, and what a name means in each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.errors import PassError, UnchangedError
from edgewise_converter.libraries import need, quietly

MAX_DEPTH: Final = 16
"""Of graphs inside of nodes."""
STANDARD: Final = ("", "ai.onnx")
Shared = dict[Any, Any]
_LOOPS: Final = ("Loop", "Scan", "SequenceMap")


@dataclass
class Scope:
    """A graph, and the graphs around it.

    Attributes:
        graph: `onnx.GraphProto`; changes are seen by all who walk.
        repeated: whether a loop is around it, so that its values are many.
        number: its place in the order of `scopes`.
    """

    graph: Any
    parent: Scope | None = None
    repeated: bool = False
    number: int = 0
    _constants: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}

    def constant(self, name: str) -> Any | None:
        """The `TensorProto` that a name stands for here; None where it is no constant."""
        if name in self._constants:
            return None if name in {i.name for i in self.graph.input} else self._constants[name]
        if self.parent is None or any(name in node.output for node in self.graph.node):
            return None
        return self.parent.constant(name)

    def array(self, name: str) -> NDArray[Any] | None:
        """The values of a float32 constant; None where the name is none."""
        onnx = need("onnx")
        tensor = self.constant(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        return np.asarray(onnx.numpy_helper.to_array(tensor))

    def weights(self, name: str) -> NDArray[np.float32]:
        """The values of a name that is known to be a float32 constant."""
        array = self.array(name)
        if array is None:
            raise ValueError(f"{name} is no float32 constant")
        return array

    def add(self, tensor: Any) -> str:
        """Put a constant into the graph, unless it is there; its name."""
        if tensor.name not in self._constants:
            self.graph.initializer.append(tensor)
            self._constants[tensor.name] = tensor
        return str(tensor.name)


def load(data: bytes, what: str) -> Any:
    """Parse an ONNX file that was read before, with its constants as initializers.

    Raises:
        PassError: it is damaged.
    """
    onnx = need("onnx")
    try:
        with quietly():
            model = onnx.load_model_from_string(data)
            if model.functions:
                model = need("onnx.inliner").inline_local_functions(model)
    except Exception as error:
        raise PassError(f"{what} is not an ONNX file: {str(error)[:200]}") from error
    for scope in reversed(scopes(model)):
        _lift_constants(onnx, scope.graph)
    return model


def scopes(model: Any) -> list[Scope]:
    """Every graph of a model, the outer before the inner, in the order of nodes.

    Raises:
        PassError: graphs are nested too deep.
    """
    found = list(_scopes(Scope(model.graph), 0))
    for number, scope in enumerate(found):
        scope.number = number
    return found


def _scopes(scope: Scope, depth: int) -> Iterator[Scope]:
    if depth > MAX_DEPTH:
        raise PassError(f"graphs are nested deeper than {MAX_DEPTH}")
    yield scope
    for node in scope.graph.node:
        for graph in inner_graphs(node):
            yield from _scopes(Scope(graph, scope, scope.repeated or node.op_type in _LOOPS), depth + 1)


def inner_graphs(node: Any) -> Iterator[Any]:
    """The graphs that a node's attributes hold."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: Any) -> Iterator[str]:
    """Names that a node reads, also from within the graphs of its attributes."""
    yield from node.input
    for graph in inner_graphs(node):
        for inner in graph.node:
            yield from reads(inner)
        yield from (output.name for output in graph.output)


def readers(graph: Any) -> dict[str, list[Any]]:
    """The nodes of a graph that read each name; a graph's output counts as a reader, None."""
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in dict.fromkeys(reads(node)):
            found.setdefault(name, []).append(node)
    for output in graph.output:
        found.setdefault(output.name, []).append(None)
    return found


@dataclass(frozen=True, slots=True)
class Layer:
    """A node that a pass can quantize, by the name that settings call it."""

    name: str
    scope: Scope
    node: Any


def find_layers(all_scopes: list[Scope], fits: Callable[[Scope, Any], bool]) -> list[Layer]:
    """The nodes that fit, in the graph's order; their names are unique in the model and always the same."""
    found, seen = [], set[str]()
    for scope in all_scopes:
        for node in scope.graph.node:
            if not fits(scope, node):
                continue
            name = base = node.name or f"{node.op_type}:{node.output[0]}"
            for n in range(2, len(seen) + 3):
                if name not in seen:
                    break
                name = f"{base}#{n}"
            seen.add(name)
            found.append(Layer(name, scope, node))
    return found


def chosen(
    pass_name: str, found: list[Layer], keep_float: tuple[str, ...], looked_for: str, operators: tuple[str, ...] = ()
) -> list[Layer]:
    """The layers without those that stay in float, and, if operators are given, without others than these.

    Raises:
        PassError: a name to keep is none of theirs.
        UnchangedError: none is left.
    """
    if unknown := sorted(set(keep_float) - {layer.name for layer in found}):
        raise PassError(f"{pass_name}: keep_float names {unknown[0]!r}, which is no layer that it quantizes")
    mine = [layer for layer in found if not operators or layer.node.op_type in operators]
    left = [layer for layer in mine if layer.name not in set(keep_float)]
    if not left:
        kept = f"; all {len(mine)} are kept in float" if mine else ""
        raise UnchangedError(f"{pass_name} changed nothing: it looks for {looked_for}{kept}")
    return left


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    onnx = need("onnx")
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def opset(model: Any) -> int:
    """The version of the standard's operator set that the model uses; 0 for none."""
    return max((int(o.version) for o in model.opset_import if o.domain in STANDARD), default=0)


def import_domain(model: Any, domain: str, version: int = 1) -> None:
    """Declare a set of operators, unless it is declared."""
    if domain not in {o.domain for o in model.opset_import}:
        model.opset_import.add(domain=domain, version=version)


def replace_nodes(graph: Any, nodes: list[Any]) -> None:
    """Give a graph other nodes, as copies: do it in inner graphs before the outer ones."""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def rewrite(all_scopes: list[Scope], layers: list[Layer], make: Callable[[Scope, Any, Shared], list[Any]]) -> None:
    """Put other nodes in the place of layers, in inner graphs before the outer ones.

    Args:
        all_scopes: of the model, see `scopes`.
        layers: some of its.
        make: called with the graph, a layer's node, and what layers of that graph share; the nodes to put there.
    """
    for scope in reversed(all_scopes):
        mine = [layer.node for layer in layers if layer.scope is scope]
        if not mine:
            continue
        shared: Shared = {}
        nodes: list[Any] = []
        for node in scope.graph.node:
            nodes.extend(make(scope, node, shared) if any(node is one for one in mine) else [node])
        replace_nodes(scope.graph, nodes)


def drop_unused(model: Any) -> None:
    """Leave out constants that nothing reads."""
    for scope in scopes(model):
        used = set(readers(scope.graph))
        kept = [tensor for tensor in scope.graph.initializer if tensor.name in used]
        if len(kept) != len(scope.graph.initializer):
            copies = [type(t).FromString(t.SerializeToString()) for t in kept]
            del scope.graph.initializer[:]
            scope.graph.initializer.extend(copies)


def _lift_constants(onnx: Any, graph: Any) -> None:
    outputs = {output.name for output in graph.output}
    kept = []
    for node in graph.node:
        tensor = _constant_of(onnx, node) if node.op_type == "Constant" and node.domain in STANDARD else None
        if tensor is None or node.output[0] in outputs:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    if len(kept) != len(graph.node):
        replace_nodes(graph, kept)


def _constant_of(onnx: Any, node: Any) -> Any | None:
    for item in node.attribute:
        if item.name == "value":
            return onnx.TensorProto.FromString(item.t.SerializeToString())
        value = onnx.helper.get_attribute_value(item)
        if item.name in ("value_float", "value_floats"):
            return onnx.numpy_helper.from_array(np.asarray(value, np.float32))
        if item.name in ("value_int", "value_ints"):
            return onnx.numpy_helper.from_array(np.asarray(value, np.int64))
    return None
