"""One tensor between NumPy and the wire: JSON numbers or raw little-endian bytes. Pure.

Both ways are exact: JSON carries a float's shortest exact decimal form, and no number is
rounded to an integer type or wrapped around. NaN and infinities stand in JSON as `NaN`,
`Infinity` and `-Infinity`, as Triton writes and reads them; strict parsers want binary data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np
from edgewise_protocol.manifest import DType
from numpy.typing import NDArray

from edgewise_agent.engines.dtypes import NUMPY
from edgewise_agent.serving.errors import RequestError

_ITEM: Final[dict[str, type]] = {"b": bool, "i": int, "u": int, "f": float}
_WHITE: Final = b" \t\r\n"


@cache
def _nested(kind: str, depth: int) -> Any:
    found: Any = _ITEM[kind]
    for _ in range(depth):
        found = list[found]
    return found


@cache
def _decoder(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_nested(kind, depth))


def from_json(data: msgspec.Raw | list[Any], dtype: DType, shape: Sequence[int], name: str) -> NDArray[Any]:
    """A tensor from JSON, nested as its shape or flattened in row-major order.

    Args:
        data: the text of the `data` field, or what it was parsed to.

    Raises:
        RequestError: not numbers (or booleans) of this type, or not as many as the shape says.
    """
    wanted = NUMPY[dtype]
    rank = max(1, len(shape))
    try:
        if isinstance(data, list):
            depth = rank if data and isinstance(data[0], list) else 1
            rows = msgspec.convert(data, _nested(wanted.kind, depth))
        else:
            depth = rank if bytes(data)[1:].lstrip(_WHITE).startswith(b"[") else 1
            rows = _decoder(wanted.kind, depth).decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError(f"input {name!r} does not hold {dtype} data of shape {list(shape)}: {error}") from error
    if depth > 1 or not shape:
        rows = _flattened(rows, shape, name)
    return _array(rows, dtype, shape, name)


def _flattened(data: list[Any], shape: Sequence[int], name: str) -> list[Any]:
    rows: list[Any] = [data]
    for size in shape or (1,):
        if any(len(row) != size for row in rows):
            raise RequestError(f"input {name!r}: the data is not nested as its shape {list(shape)} says")
        rows = list(chain.from_iterable(rows))
    return rows


def _array(flat: list[Any], dtype: DType, shape: Sequence[int], name: str) -> NDArray[Any]:
    wanted = NUMPY[dtype]
    if len(flat) != math.prod(shape):
        raise RequestError(
            f"input {name!r} has the shape {list(shape)}, that is {math.prod(shape)} elements; got {len(flat)}"
        )
    if wanted.kind in "iu" and flat:
        limits = np.iinfo(wanted)
        if min(flat) < limits.min or max(flat) > limits.max:
            raise RequestError(f"input {name!r} holds a number outside of {dtype}")
    if wanted.kind != "f":
        return np.array(flat, wanted).reshape(shape)
    exact = np.array(flat, np.float64)
    with np.errstate(over="ignore"):
        array = exact.astype(wanted)
    if (np.isinf(array) & np.isfinite(exact)).any():
        raise RequestError(f"input {name!r} holds a number outside of {dtype}")
    return array.reshape(shape)


def from_binary(data: memoryview, dtype: DType, shape: Sequence[int], name: str) -> NDArray[Any]:
    """A tensor over the request's own bytes; a copy only where they are not aligned.

    Raises:
        RequestError: not as many bytes as the shape says, or a BOOL that is neither 0 nor 1.
    """
    wanted = NUMPY[dtype]
    size = math.prod(shape) * wanted.itemsize
    if len(data) != size:
        raise RequestError(
            f"input {name!r} is {dtype} of shape {list(shape)}, that is {size} bytes; got {len(data)} bytes"
        )
    if wanted.kind == "b" and data.nbytes and np.frombuffer(data, np.uint8).max() > 1:
        raise RequestError(f"input {name!r} holds a BOOL that is neither 0 nor 1")
    return np.require(np.frombuffer(data, wanted).reshape(shape), requirements="A")


def to_json(array: NDArray[Any]) -> list[Any] | msgspec.Raw:
    """The `data` field of an output, flattened in row-major order."""
    flat = array.reshape(-1)
    if array.dtype.kind == "f" and not np.isfinite(flat).all():
        return msgspec.Raw(json.dumps(flat.tolist(), separators=(",", ":")).encode("ascii"))
    found: list[Any] = flat.tolist()
    return found


def to_binary(array: NDArray[Any]) -> bytes:
    """Raw little-endian bytes in row-major order."""
    return array.tobytes()


def top_classes(array: NDArray[Any], number: int, labels: Sequence[str]) -> list[list[bytes]]:
    """The classification extension: per sample `value:index[:label]` of its `number` largest values.

    Args:
        array: scores of shape (N, ...); equal scores in the order of their index, NaN last.
    """
    rows = array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)
    found: list[list[bytes]] = []
    for row in rows:
        scores = row.astype(np.float64)
        order = np.argsort(-scores, kind="stable")[:number]
        found.append(
            [
                f"{scores[i]:f}:{i}{':' + labels[i] if i < len(labels) and labels[i] else ''}".encode()
                for i in order.tolist()
            ]
        )
    return found


def bytes_to_binary(rows: Sequence[Sequence[bytes]]) -> bytes:
    """BYTES elements, each after its length as four little-endian bytes."""
    return b"".join(struct.pack("<I", len(item)) + item for row in rows for item in row)
