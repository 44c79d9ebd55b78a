"""What an ONNX file claims, held against what it holds: tensors, shapes, operators."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

from edgewise_converter.errors import ModelFileError
from edgewise_converter.libraries import need
from edgewise_converter.passes.onnx_operators import STANDARD_DOMAINS, is_served

MAX_ELEMENTS: Final = 2**28
"""Of a tensor that a file makes out of a few bytes, or takes as an input: 1 GiB of float32."""
MAX_EXPANDED: Final = 50_000
"""Nodes that functions become where they are called: engines write them out, in a time that grows by the square."""
_MAX_RANK: Final = 32
_GROWING: Final = {"ConstantOfShape": 0, "Expand": 1}
"""Operators that make a tensor of the shape which one of their inputs says: which."""


def check_tensors(model: Any, name: str) -> None:
    """Hold every constant's claim against its bytes, before anything is allocated by it.

    Raises:
        ModelFileError: its data is in another file, or is not as long as its shape says.
    """
    onnx = need("onnx")
    for tensor in tensors(model):
        called = f"{name}: the constant {tensor.name[:80]!r}"
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            _refuse_external(tensor, name)
        if len(tensor.dims) > _MAX_RANK or any(size < 0 for size in tensor.dims):
            raise ModelFileError(f"{called} has a shape of {len(tensor.dims)} dimensions, or a negative one")
        count = math.prod(tensor.dims)
        bits = _BITS.get(_type_name(onnx, tensor.data_type))
        if bits is None:
            raise ModelFileError(f"{called} is of a type that devices do not know ({tensor.data_type})")
        if bits == 0:
            held, wanted = len(tensor.string_data), count
        elif tensor.raw_data:
            held, wanted = len(tensor.raw_data), (count * bits + 7) // 8
        else:
            held, wanted = _listed(onnx, tensor), _entries(count, bits, _type_name(onnx, tensor.data_type))
        if held != wanted:
            raise ModelFileError(
                f"{called} claims a shape of {count} elements but holds {held} of {wanted} "
                f"{'bytes' if tensor.raw_data else 'entries'}: the file is damaged, or made to harm"
            )


def check_shapes(model: Any, name: str) -> None:
    """Refuse shapes that no memory holds.

    Raises:
        ModelFileError: an input, an output or a constant's extension is absurdly large.
    """
    onnx = need("onnx")
    for graph in graphs(model):
        for value in (*graph.input, *graph.output, *graph.value_info):
            dims = value.type.tensor_type.shape.dim
            sizes = [d.dim_value for d in dims if d.HasField("dim_value")]
            if len(dims) > _MAX_RANK or any(size < 0 for size in sizes) or math.prod(sizes) > MAX_ELEMENTS:
                raise ModelFileError(f"{name}: the tensor {value.name[:80]!r} has the absurd shape {sizes[:8]}")
        known = {t.name: t for t in graph.initializer}
        known |= {n.output[0]: a.t for n in graph.node if n.op_type == "Constant" and n.output for a in n.attribute}
        for node in graph.node:
            place = _GROWING.get(node.op_type)
            tensor = known.get(node.input[place]) if place is not None and len(node.input) > place else None
            if tensor is None or tensor.data_type != onnx.TensorProto.INT64:
                continue
            sizes = onnx.numpy_helper.to_array(tensor).reshape(-1).tolist()
            if len(sizes) > _MAX_RANK or math.prod(sizes) > MAX_ELEMENTS:
                raise ModelFileError(f"{name}: the node {_called(node)} makes a tensor of the absurd shape {sizes[:8]}")


def check_operators(model: Any, name: str) -> None:
    """Hold that every operator is known to onnxruntime, or defined in the file.

    Raises:
        ModelFileError: one is not: which, where, and what to do.
    """
    onnx = need("onnx")
    versions = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    own = {(function.domain, function.name) for function in model.functions}
    for node in nodes(model):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (node.domain, node.op_type) in own:
            continue
        if not is_served(domain, node.op_type):
            raise ModelFileError(
                f"{name}: the node {_called(node)} uses {node.op_type[:80]!r} of {domain[:80]!r}, an operator of no "
                "engine on a device: export the model without it, or replace it by standard operators"
            )
        if domain in STANDARD_DOMAINS and not _is_known(onnx, node.op_type, versions.get(domain, 0), domain):
            raise ModelFileError(
                f"{name}: the node {_called(node)} uses the operator {node.op_type[:80]!r}, which the ONNX standard "
                f"does not have in {domain or 'its'} operator set {versions.get(domain, 0)}: export the model with a "
                "set that has it, or replace it"
            )


def check_functions(model: Any, name: str) -> None:
    """Refuse functions that call each other to more nodes than an engine can write out, or without an end.

    Raises:
        ModelFileError: they do.
    """
    bodies: dict[tuple[str, str], list[Any]] = {}
    for function in model.functions:
        bodies.setdefault(_key(function.domain, function.name), []).extend(nodes(function))
    called = {key: [k for n in body if (k := _key(n.domain, n.op_type)) in bodies] for key, body in bodies.items()}
    sizes: dict[tuple[str, str], int] = {}
    callers: dict[tuple[str, str], list[tuple[str, str]]] = {key: [] for key in bodies}
    left = {key: len(set(found)) for key, found in called.items()}
    for key, found in called.items():
        for inner in set(found):
            callers[inner].append(key)
    ready = [key for key, count in left.items() if not count]
    while ready:
        key = ready.pop()
        sizes[key] = min(len(bodies[key]) + sum(sizes[inner] for inner in called[key]), MAX_EXPANDED + 1)
        for caller in callers[key]:
            left[caller] -= 1
            if not left[caller]:
                ready.append(caller)
    if len(sizes) != len(bodies):
        raise ModelFileError(f"{name}: its functions call each other in a circle")
    total = sum(sizes.get(_key(node.domain, node.op_type), 0) for node in nodes(model.graph))
    if total > MAX_EXPANDED:
        raise ModelFileError(
            f"{name}: its functions stand for more than {MAX_EXPANDED} nodes where they are called; export the model "
            "without functions (onnx.inliner.inline_local_functions)"
        )


def graphs(model: Any) -> Iterator[Any]:
    """Every graph, wherever in the file; nesting was bounded before."""
    return _messages(model, "GraphProto")


def nodes(model: Any) -> Iterator[Any]:
    """Every node, also of functions."""
    return _messages(model, "NodeProto")


def tensors(model: Any) -> Iterator[Any]:
    """Every constant tensor."""
    return _messages(model, "TensorProto")


def _messages(root: Any, kind: str) -> Iterator[Any]:
    """All messages of a kind within another one.

    All fields that hold messages are followed, not those that are known to: what the schema allows in a place
    (the default of a function's attribute, a training step) an engine takes from there, too.
    """
    waiting = [root]
    while waiting:
        message = waiting.pop()
        if message.DESCRIPTOR.name == kind:
            yield message
        for field, found in message.ListFields():
            if field.message_type is not None:
                waiting.extend(found if isinstance(found, Sequence) else (found,))


def _refuse_external(tensor: Any, name: str) -> None:
    place = next((e.value for e in tensor.external_data if e.key == "location"), "")
    outside = ".." in PurePosixPath(place).parts or ".." in PureWindowsPath(place).parts
    outside = outside or PurePosixPath(place).is_absolute() or bool(PureWindowsPath(place).anchor)
    where = f" outside of its folder ({place[:80]!r}), which was not opened" if outside else ""
    raise ModelFileError(
        f"{name} keeps the weights {tensor.name[:80]!r} in another file{where}; a bundle holds one file: save the "
        "model again with onnx.save_model(model, path, save_as_external_data=False)"
    )


_BITS: Final = {
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 8),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    "FLOAT8E8M0": 8,
    "INT2": 2,
    "UINT2": 2,
    "COMPLEX128": 128,
    "STRING": 0,
}


def _type_name(onnx: Any, data_type: int) -> str:
    try:
        return str(onnx.TensorProto.DataType.Name(data_type))
    except ValueError:
        return ""


def _listed(onnx: Any, tensor: Any) -> int:
    """Entries of the typed field in which the values stand."""
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    return sum(len(getattr(tensor, field)) for field in fields)


def _entries(count: int, bits: int, kind: str) -> int:
    """How many entries of a typed field so many elements take."""
    if kind.startswith("COMPLEX"):
        return 2 * count
    return (count * bits + 7) // 8 if bits < 8 else count


def _key(domain: str, name: str) -> tuple[str, str]:
    """What a function is called by; functions that differ in their overload alone count as one of all their nodes."""
    return ("" if domain == "ai.onnx" else domain, name)


def _called(node: Any) -> str:
    return repr((node.name or next(iter(node.output), ""))[:80])


def _is_known(onnx: Any, operator: str, version: int, domain: str) -> bool:
    try:
        schema = onnx.defs.get_schema(operator, version, domain)
    except (onnx.defs.SchemaError, TypeError, OverflowError):
        return False
    return not schema.deprecated
