"""Making ONNX files reproducible: nothing in them but the graph, in an order that is always the same.

Exporters and quantizers leave stack traces, source paths, versions and dates in metadata and
doc strings (80 to 93 per cent of a small file), and order initializers by chance.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need, quietly

PRODUCER: Final = "edgewise"
BATCH: Final = "batch"
_IR_VERSION: Final = 10
"""The newest that every onnxruntime from 1.19 on reads."""


def canonical(model: Any, *, input_name: str, output_name: str) -> bytes:
    """Deterministic bytes of a model with one input and one output, both with a free batch.

    Args:
        model: `onnx.ModelProto`; it is changed.
        input_name, output_name: what the graph's input and output must be called.

    Raises:
        PassError: the graph is not of this form, or not valid ONNX.
    """
    onnx = need("onnx")
    graph = model.graph
    if [i.name for i in graph.input] != [input_name] or [o.name for o in graph.output] != [output_name]:
        raise PassError(
            f"the graph takes {[i.name for i in graph.input]} and gives {[o.name for o in graph.output]}; "
            f"{[input_name]} and {[output_name]} are needed"
        )
    foreign = sorted({node.domain for node in graph.node} - {"", "ai.onnx"})
    if foreign or model.functions:
        raise PassError(f"the graph uses operators outside of the ONNX standard: {', '.join(foreign) or 'functions'}")
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    strip(model)
    del graph.value_info[:]
    standard = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.add(domain="", version=standard[0])
    model.ir_version = min(model.ir_version, _IR_VERSION)
    model.producer_name, model.producer_version, model.domain = PRODUCER, "", ""
    graph.name = "model"
    nodes = topological(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    ordered = sorted(graph.initializer, key=lambda tensor: str(tensor.name))
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    try:
        with quietly():
            onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PassError(f"the graph is not valid ONNX: {error}") from error
    return bytes(model.SerializeToString(deterministic=True))


def topological(nodes: Iterable[Any]) -> list[Any]:
    """Nodes so that each comes after those whose outputs it uses, else in their order.

    onnxruntime's float16 conversion puts its casts last; ONNX demands the sorted order.

    Raises:
        PassError: the graph has a cycle.
    """
    waiting = list(nodes)
    made_by = {name: i for i, node in enumerate(waiting) for name in node.output if name}
    needs = [{made_by[name] for name in _used(node) if name in made_by} - {i} for i, node in enumerate(waiting)]
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


def _used(node: Any) -> Iterator[str]:
    """Names that a node reads, also from within the graphs of its attributes."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _used(inner)


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
