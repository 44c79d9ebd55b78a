"""Making ONNX files reproducible: nothing in them but the graph, in an order that is always the same.

Exporters and quantizers leave stack traces, source paths, versions and dates in metadata and
doc strings (80 to 93 per cent of a small file), and order initializers by chance.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly
from edgewise_converter.passes.onnx_operators import is_served
from edgewise_converter.passes.onnx_scopes import STANDARD, drop_unused, opset, reads, replace_nodes, scopes

PRODUCER: Final = "edgewise"
BATCH: Final = "batch"
_IR_VERSION: Final = 10
"""The newest that every onnxruntime from 1.19 on reads."""


def canonical(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Deterministic bytes of a model.

    Where no input's and output's first dimension is fixed, it is their batch and called so. Other
    dimensions keep their names and sizes.

    Args:
        model: `onnx.ModelProto`; it is changed.
        inputs, outputs: what the graph's inputs and outputs must be called, in any order.

    Raises:
        PassError: the graph is not of this form, or not valid ONNX.
    """
    onnx = need("onnx")
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    taken = [value for value in graph.input if value.name not in constants]
    if {i.name for i in taken} != set(inputs) or {o.name for o in graph.output} != set(outputs):
        raise PassError(
            f"the graph takes {[i.name for i in taken]} and gives {[o.name for o in graph.output]}; "
            f"{list(inputs)} and {list(outputs)} are needed"
        )
    _replace(graph.input, taken)
    _check_operators(model)
    _name_batch([*graph.input, *graph.output])
    strip(model)
    version = opset(model)
    others = {o.domain: o.version for o in model.opset_import if o.domain not in STANDARD}
    used = {node.domain for scope in scopes(model) for node in scope.graph.node}
    del model.opset_import[:]
    model.opset_import.add(domain="", version=version)
    for domain in sorted(used & set(others)):
        model.opset_import.add(domain=domain, version=others[domain])
    model.ir_version = min(model.ir_version, _IR_VERSION)
    model.producer_name, model.producer_version, model.domain = PRODUCER, "", ""
    model.ClearField("model_version")
    graph.name = "model"
    drop_unused(model)
    for scope in reversed(scopes(model)):
        del scope.graph.value_info[:]
        replace_nodes(scope.graph, topological(scope.graph.node))
        _replace(scope.graph.initializer, sorted(scope.graph.initializer, key=lambda tensor: str(tensor.name)))
    try:
        with quietly():
            onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PassError(f"the graph is not valid ONNX: {error}") from error
    return bytes(model.SerializeToString(deterministic=True))


def _check_operators(model: Any) -> None:
    if model.functions:
        raise PassError("the graph uses operators outside of the ONNX standard: functions")
    for scope in scopes(model):
        for node in scope.graph.node:
            if not is_served(node.domain, node.op_type):
                raise PassError(
                    f"the graph uses operators outside of the ONNX standard: {node.domain}::{node.op_type} "
                    f"(node {node.name or node.output[0]!r})"
                )


def _name_batch(values: list[Any]) -> None:
    shapes = [value.type.tensor_type.shape for value in values]
    if all(shape.dim and not shape.dim[0].HasField("dim_value") for shape in shapes):
        for shape in shapes:
            shape.dim[0].dim_param = BATCH


def _replace(field: Any, items: list[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def topological(nodes: Iterable[Any]) -> list[Any]:
    """Nodes so that each comes after those whose outputs it uses, else in their order.

    onnxruntime's float16 conversion puts its casts last; ONNX demands the sorted order.

    Raises:
        PassError: the graph has a cycle.
    """
    waiting = list(nodes)
    made_by = {name: i for i, node in enumerate(waiting) for name in node.output if name}
    needs = [{made_by[name] for name in reads(node) if name in made_by} - {i} for i, node in enumerate(waiting)]
    users: list[list[int]] = [[] for _ in waiting]
    for i, sources in enumerate(needs):
        for source in sources:
            users[source].append(i)
    ready = [i for i, sources in enumerate(needs) if not sources]
    heapq.heapify(ready)
    found = []
    while ready:
        i = heapq.heappop(ready)
        found.append(waiting[i])
        for user in users[i]:
            needs[user].discard(i)
            if not needs[user]:
                heapq.heappush(ready, user)
    if len(found) != len(waiting):
        raise PassError("the graph has a cycle")
    return found


def strip(message: Any) -> None:
    """Empty every `metadata_props` and `doc_string` below a protobuf message."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if not hasattr(value, "ListFields") else (value,):
                if hasattr(part, "ListFields"):
                    strip(part)


def output_scale(data: bytes) -> float | None:
    """The step between neighbouring output values of a quantized graph, or None of a float one."""
    onnx = need("onnx")
    graph = onnx.load_from_string(data).graph
    output = graph.output[0].name
    for node in graph.node:
        if output in node.output and node.op_type == "DequantizeLinear":
            for tensor in graph.initializer:
                if tensor.name == node.input[1]:
                    scale = float(onnx.numpy_helper.to_array(tensor).reshape(-1)[0])
                    return scale if math.isfinite(scale) and scale > 0 else None
    return None
