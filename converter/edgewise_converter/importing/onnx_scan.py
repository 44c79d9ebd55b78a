"""Counting what an ONNX file holds before anything is built from it.

Two bytes of a file can become a message of a hundred in memory. This walks the protobuf wire
format of the parts that can be many or nested, and allocates nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from edgewise_converter.errors import ModelFileError

MAX_FIELDS: Final = 4_000_000
MAX_NODES: Final = 200_000
MAX_DEPTH: Final = 16
"""Of graphs inside of nodes."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT: Final = 10

_Parts = dict[int, str]
"""Which fields of a message are messages that are walked too, by number."""
_MESSAGES: Final[dict[str, _Parts]] = {
    "model": {7: "graph", 8: "opset", 14: "property", 20: "training", 25: "function", 26: "device"},
    "training": {1: "graph", 2: "graph", 3: "property", 4: "property"},
    "function": {7: "node", 11: "attribute", 12: "value", 9: "opset", 14: "property"},
    "graph": {
        1: "node",
        5: "tensor",
        15: "sparse",
        11: "value",
        12: "value",
        13: "value",
        14: "annotation",
        16: "property",
    },
    "node": {5: "attribute", 9: "property", 10: "placement"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
        14: "type",
        15: "type",
    },
    "tensor": {3: "segment", 13: "property", 16: "property"},
    "sparse": {1: "tensor", 2: "tensor"},
    "value": {2: "type", 4: "property"},
    "type": {1: "tensor_type", 4: "sequence", 5: "map", 7: "opaque", 8: "tensor_type", 9: "sequence"},
    "sequence": {1: "type"},
    "map": {2: "type"},
    "tensor_type": {2: "shape"},
    "shape": {1: "dimension"},
    "annotation": {2: "property"},
    "opset": {},
    "property": {},
    "dimension": {},
    "segment": {},
    "opaque": {},
    "device": {},
    "placement": {2: "sharding"},
    "sharding": {3: "property", 4: "sharded"},
    "sharded": {2: "property"},
}
_NESTING: Final = 6 * MAX_DEPTH
"""Of messages: a graph in a node's attribute is three deep."""


class _Part(NamedTuple):
    kind: str
    at: int
    end: int
    depth: int
    graphs: int


def scan(data: bytes, name: str) -> None:
    """Hold a file's counts and nesting against bounds.

    Args:
        data: the file.
        name: of it, for messages.

    Raises:
        ModelFileError: it is cut short or no protobuf, or holds more than any model that a device could run.
    """
    fields = nodes = 0
    waiting = [_Part("model", 0, len(data), 0, 0)]
    while waiting:
        part = waiting.pop()
        inner, at = _MESSAGES[part.kind], part.at
        if part.depth > _NESTING or part.graphs > MAX_DEPTH + 1:
            raise ModelFileError(f"{name} nests graphs deeper than {MAX_DEPTH}")
        while at < part.end:
            fields += 1
            key, at = _varint(data, at, part.end, name)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise _damaged(name)
            if wire == _VARINT:
                _, at = _varint(data, at, part.end, name)
                continue
            if wire == _BYTES:
                size, at = _varint(data, at, part.end, name)
                kind = inner.get(number)
                if kind is not None and at + size <= part.end:
                    nodes += kind == "node"
                    waiting.append(_Part(kind, at, at + size, part.depth + 1, part.graphs + (kind == "graph")))
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
            else:
                raise _damaged(name)
            at += size
            if at > part.end:
                raise _damaged(name)
            if fields > MAX_FIELDS or nodes > MAX_NODES:
                raise ModelFileError(
                    f"{name} holds more than {MAX_NODES} nodes or {MAX_FIELDS} fields; no device could run it"
                )


def _varint(data: bytes, at: int, end: int, name: str) -> tuple[int, int]:
    value = 0
    for place in range(_MAX_VARINT):
        if at >= end:
            raise _damaged(name)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at
    raise _damaged(name)


def _damaged(name: str) -> ModelFileError:
    return ModelFileError(f"{name} is not an ONNX file, or is cut short")
