"""Holding an outside file against the flatbuffer format before any reader or engine follows its offsets.

LiteRT trusts offsets: a forged one reads wherever it points, and may end the process. This is
what `flatbuffers::Verifier` does for the TFLite schema: every table, vector and string that can be
reached must lie inside the file. What the graph then means is `structure`'s to check.
"""

from __future__ import annotations

import functools
import struct
from typing import Final

from edgewise_converter.errors import ModelFileError
from edgewise_converter.libraries import need
from edgewise_converter.tflite_file.schema import FIELDS

MAGIC: Final = b"TFL3"
"""File identifier of a TFLite flatbuffer, at offset 4."""
MAX_TABLES: Final = 250_000
"""Tables followed, each as often as it is reached: a file may reach one of them many times."""
MAX_DEPTH: Final = 32
_MAX_CLAIM: Final = 4
"""Bytes of vectors and strings that are reached, as a multiple of the file's."""
_SLACK: Final = 1 << 20
_WIDTHS: Final = {"1": 1, "2": 2, "4": 4, "8": 8}


def verify(data: bytes, name: str) -> None:
    """Follow every offset of the file.

    Args:
        data: the file.
        name: of the file, for messages.

    Raises:
        ModelFileError: it is no TFLite file, is cut short, or points outside of itself.
    """
    if len(data) < 8 or data[4:8] != MAGIC:
        raise ModelFileError(f"{name} is not a TFLite file: its identifier {MAGIC.decode()} is missing")
    try:
        _Walk(data).run()
    except (_Broken, struct.error) as error:
        raise ModelFileError(
            f"{name} is damaged or cut short: {error}; get the file again, or export the model anew"
        ) from error


class _Broken(Exception):
    """What in the file does not hold."""


class _Walk:
    """One pass over a file. Positions are absolute, and held inside the file before they are read."""

    def __init__(self, data: bytes) -> None:
        self._data, self._size = data, len(data)
        self._left = _MAX_CLAIM * len(data) + _SLACK
        self._tables = 0
        self._stack: list[tuple[str, int, int]] = []

    def run(self) -> None:
        self._push("Model", self._follow(0), 0)
        while self._stack:
            kind, position, depth = self._stack.pop()
            self._table(kind, position, depth)

    def _push(self, kind: str, position: int, depth: int) -> None:
        self._tables += 1
        if self._tables > MAX_TABLES or depth > MAX_DEPTH:
            raise _Broken(f"it holds more than {MAX_TABLES} tables, or nests them deeper than {MAX_DEPTH}")
        self._stack.append((kind, position, depth))

    def _inside(self, position: int, size: int, align: int = 1) -> int:
        if position < 0 or size < 0 or position + size > self._size:
            raise _Broken(f"something of {size} bytes at {position} is not within its {self._size} bytes")
        if position % align:
            raise _Broken(f"the offset {position} is not a multiple of {align}")
        return position

    def _follow(self, position: int) -> int:
        (offset,) = struct.unpack_from("<I", self._data, self._inside(position, 4, 4))
        if offset == 0:
            raise _Broken(f"the offset at {position} is zero")
        return self._inside(position + int(offset), 4, 4)

    def _table(self, kind: str, position: int, depth: int) -> None:
        (back,) = struct.unpack_from("<i", self._data, self._inside(position, 4, 4))
        vtable = self._inside(position - int(back), 4, 2)
        length, extent = struct.unpack_from("<HH", self._data, vtable)
        if length < 4 or length % 2 or extent < 4:
            raise _Broken(f"the table {kind} at {position} has no valid description")
        self._inside(vtable, length)
        self._inside(position, extent)
        slots = struct.unpack_from(f"<{(length - 4) // 2}H", self._data, vtable + 4)
        before = 0
        for kind_of, offset in zip(_fields(kind), slots, strict=False):
            if offset:
                self._field(kind, kind_of, position + int(offset), before, depth)
            before = position + int(offset) if offset else 0

    def _field(self, kind: str, code: str, position: int, before: int, depth: int) -> None:
        if code == "-":
            return
        if code in _WIDTHS:
            self._inside(position, _WIDTHS[code], _WIDTHS[code])
            return
        target = self._follow(position)
        if code == "s":
            self._string(target)
        elif code.startswith("["):
            self._vector(code[1:], target, depth)
        elif code.startswith("?"):
            if not before:
                raise _Broken(f"a {kind} holds a {code[1:]} of no kind")
            self._push(_union(code[1:]).get(self._data[before], ""), target, depth + 1)
        else:
            self._push(code, target, depth + 1)

    def _string(self, position: int) -> None:
        (length,) = struct.unpack_from("<I", self._data, position)
        self._claim(int(length) + 1)
        end = self._inside(position + 4, int(length) + 1) + int(length)
        if self._data[end]:
            raise _Broken(f"the text at {position} has no end")

    def _vector(self, code: str, position: int, depth: int) -> None:
        (count,) = struct.unpack_from("<I", self._data, position)
        width = _WIDTHS.get(code, 4)
        self._inside(position + 4, int(count) * width)
        self._claim(int(count) * width)
        if code in _WIDTHS:
            return
        for i in range(int(count)):
            target = self._follow(position + 4 + 4 * i)
            if code == "s":
                self._string(target)
            else:
                self._push(code, target, depth + 1)

    def _claim(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _Broken("its parts, counted as often as they are named, hold several times what it holds")


@functools.cache
def _fields(kind: str) -> tuple[str, ...]:
    return tuple(FIELDS.get(kind, "").split())


@functools.cache
def _union(name: str) -> dict[int, str]:
    """Tables of a union by the number that tells them; 0 is none, and an unknown one is a table of unknown fields."""
    numbers = vars(getattr(need("ai_edge_litert.schema_py_generated"), name))
    return {number: table for table, number in numbers.items() if isinstance(number, int) and number}
