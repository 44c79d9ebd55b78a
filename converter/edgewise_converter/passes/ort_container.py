"""onnxruntime's container written anew, in an order that is always the same.

onnxruntime keeps initializers and the like in hash tables whose seed is an address, so that two
runs store them in different orders. This reads such a file by its schema, sorts what has no order
of its own, and writes it.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from edgewise_converter.errors import PassError
from edgewise_converter.libraries import need

IDENTIFIER: Final = b"ORTM"
_MAX_DEPTH: Final = 64
_ALIGNMENT: Final = 8
"""Of constants' bytes."""
_TABLES: Final[dict[str, str]] = {
    "InferenceSession": "s Model - KernelTypeStrResolver",
    "Model": "8 [OperatorSetId s s s 8 s Graph s [StringStringEntry",
    "Graph": "[Tensor [ValueInfo [Node 4 [NodeEdge [s [s [SparseTensor RuntimeOptimizations",
    "Node": "s s s 4 4 s 4 s [s [s [Attribute [4 [s",
    "NodeEdge": "4 [12 [12",
    "ValueInfo": "s s TypeInfo",
    "TypeInfo": "s 1 ?",
    "TensorTypeAndShape": "4 Shape",
    "SequenceType": "TypeInfo",
    "MapType": "4 TypeInfo",
    "Shape": "[Dimension",
    "Dimension": "DimensionValue s",
    "DimensionValue": "1 8 s",
    "Tensor": "s s [8 4 [1 [s 8",
    "SparseTensor": "Tensor Tensor [8",
    "Attribute": "s s 4 4 8 s Tensor Graph [4 [8 [s [Tensor [Graph",
    "OperatorSetId": "s 8",
    "StringStringEntry": "s s",
    "KernelTypeStrResolver": "[OpIdKernelTypeStrArgsEntry",
    "OpIdKernelTypeStrArgsEntry": "s [KernelTypeStrArgsEntry",
    "KernelTypeStrArgsEntry": "s [ArgTypeAndIndex",
    "ArgTypeAndIndex": "1 4",
    "RuntimeOptimizations": "",
}
"""Fields in the order of their slots (onnxruntime's `ort.fbs`, version 6): a number of so many bytes, `s` a
string, `-` a retired slot, `?` a kind of `_TYPES` that the slot before names; `[` a vector."""
_TYPES: Final = {1: "TensorTypeAndShape", 2: "SequenceType", 3: "MapType"}
_UNORDERED: Final = {
    ("Model", 1),
    ("Model", 9),
    ("Graph", 0),
    ("Graph", 1),
    ("Node", 10),
    ("KernelTypeStrResolver", 0),
    ("OpIdKernelTypeStrArgsEntry", 1),
}
"""Vectors of tables that a name in their first slot tells apart."""
_Table = dict[int, Any]


def sort(data: bytes) -> bytes:
    """The same file, with what has no order sorted by name.

    Raises:
        PassError: it is not of this form.
    """
    if data[4:8] != IDENTIFIER:
        raise PassError("onnxruntime wrote a container without its identifier")
    try:
        root = _read(data, struct.unpack_from("<I", data)[0], "InferenceSession", 0)
    except (struct.error, KeyError, IndexError, RecursionError) as error:
        raise PassError(f"onnxruntime wrote a container of another form: {error}") from error
    builder = need("flatbuffers").Builder(len(data))
    builder.Finish(_write(builder, root, "InferenceSession"), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _read(data: bytes, at: int, kind: str, depth: int) -> _Table:
    if depth > _MAX_DEPTH:
        raise IndexError("too deep")
    table = at - struct.unpack_from("<i", data, at)[0]
    slots = (struct.unpack_from("<H", data, table)[0] - 4) // 2
    fields = _TABLES[kind].split()
    found: _Table = {}
    for slot in range(slots):
        offset = struct.unpack_from("<H", data, table + 4 + 2 * slot)[0]
        if not offset:
            continue
        field, place = fields[slot], at + offset
        if field.isdigit():
            found[slot] = data[place : place + int(field)]
            continue
        target = place + struct.unpack_from("<I", data, place)[0]
        if field == "?":
            found[slot] = _read(data, target, _TYPES[found[slot - 1][0]], depth + 1)
        elif field == "s":
            found[slot] = _string(data, target)
        elif not field.startswith("["):
            found[slot] = _read(data, target, field, depth + 1)
        else:
            found[slot] = _vector(data, target, field[1:], depth)
    for slot in range(slots):
        if (kind, slot) in _UNORDERED and slot in found:
            found[slot] = sorted(found[slot], key=lambda entry: entry.get(0, b""))
    return found


def _string(data: bytes, at: int) -> bytes:
    (size,) = struct.unpack_from("<I", data, at)
    return data[at + 4 : at + 4 + size]


def _vector(data: bytes, at: int, kind: str, depth: int) -> Any:
    (count,) = struct.unpack_from("<I", data, at)
    if kind.isdigit():
        return data[at + 4 : at + 4 + count * int(kind)]
    places = [at + 4 + 4 * i for i in range(count)]
    targets = [place + struct.unpack_from("<I", data, place)[0] for place in places]
    if kind == "s":
        return [_string(data, target) for target in targets]
    return [_read(data, target, kind, depth + 1) for target in targets]


def _write(builder: Any, table: _Table, kind: str) -> Any:
    """Write a table after all that it points to; where it is."""
    fields = _TABLES[kind].split()
    places: dict[int, Any] = {}
    for slot, value in table.items():
        field = fields[slot]
        if field == "s":
            places[slot] = builder.CreateString(value)
        elif field == "?":
            places[slot] = _write(builder, value, _TYPES[table[slot - 1][0]])
        elif field.startswith("["):
            places[slot] = _write_vector(builder, value, field[1:])
        elif not field.isdigit():
            places[slot] = _write(builder, value, field)
    builder.StartObject(len(fields))
    for slot, value in sorted(table.items(), key=lambda item: (-_size(fields[item[0]]), item[0])):
        if slot in places:
            builder.PrependUOffsetTRelative(places[slot])
        else:
            number = int.from_bytes(value, "little")
            getattr(builder, f"PrependUint{8 * len(value)}")(number)
        builder.Slot(slot)
    return builder.EndObject()


def _size(field: str) -> int:
    return int(field) if field.isdigit() else 4


def _write_vector(builder: Any, value: Any, kind: str) -> Any:
    if kind.isdigit():
        size = int(kind)
        builder.StartVector(size, len(value) // size, _ALIGNMENT if size in (1, 8) else 4)
        builder.head = builder.head - len(value)
        builder.Bytes[builder.head : builder.head + len(value)] = value
        return builder.EndVector()
    entries = [builder.CreateString(v) if kind == "s" else _write(builder, v, kind) for v in value]
    builder.StartVector(4, len(entries), 4)
    for entry in reversed(entries):
        builder.PrependUOffsetTRelative(entry)
    return builder.EndVector()
