"""How a gateway speaks with a board's firmware over a serial line: frames, requests and answers. Pure.

A frame is `EW`, a kind, a sequence number, the payload's length (32 bits), the payload, and the CRC-32 of all
between `EW` and itself. Numbers are little-endian. The board answers each request with the request's sequence
number and the kind plus 128, or with kind 255 and one byte that says why not. What is lost or damaged on the line is
not repeated by the board: the gateway asks again. The firmware's side is `firmware.c` of the converter.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple

from edgewise_protocol.errors import MalformedError

PROTOCOL: Final = 1
MAGIC: Final = b"EW"
HELLO: Final = 1
INVOKE: Final = 2
STATS: Final = 3
ANSWER: Final = 0x80
REFUSAL: Final = 0xFF
MAX_PAYLOAD: Final = 4 << 20
_HEAD: Final = struct.Struct("<BBI")
_CRC: Final = struct.Struct("<I")
_HELLO: Final = struct.Struct("<HBBI32s")
_STATS: Final = struct.Struct("<IIII")
_SIZE: Final = struct.Struct("<I")
_MAX_TENSORS: Final = 8
_MAX_RESCANS: Final = 8
"""Damaged frames that may lie over one another before all that they cover is given up."""
MAX_HELLO: Final = _HELLO.size + 2 * _MAX_TENSORS * _SIZE.size
"""Bytes of the longest greeting."""
OVERHEAD: Final = len(MAGIC) + _HEAD.size + _CRC.size

REFUSALS: Final[dict[int, str]] = {
    1: "the frame was damaged on the line",
    2: "the board does not know this kind of request",
    3: "the request's length is not that of the model's inputs",
    4: "the model did not run",
}


class Frame(NamedTuple):
    """One message of either side."""

    kind: int
    sequence: int
    payload: bytes


class Hello(NamedTuple):
    """What a board says of its firmware."""

    protocol: int
    arena_bytes: int
    identity: str
    """SHA-256 of the model's sources, hexadecimal."""
    inputs: tuple[int, ...]
    """Bytes of each."""
    outputs: tuple[int, ...]


class Stats(NamedTuple):
    """What a board has measured since its start."""

    stack_peak: int
    """Bytes of the stack that were ever used; 0 where the board cannot tell."""
    stack_bytes: int
    arena_bytes: int
    answered: int
    """Inferences."""


def encode(frame: Frame) -> bytes:
    """A frame's bytes.

    Raises:
        MalformedError: the payload is too long.
    """
    if len(frame.payload) > MAX_PAYLOAD:
        raise MalformedError(f"a frame of {len(frame.payload)} bytes; at most {MAX_PAYLOAD} are sent")
    body = _HEAD.pack(frame.kind, frame.sequence & 0xFF, len(frame.payload)) + frame.payload
    return MAGIC + body + _CRC.pack(zlib.crc32(body))


class Decoder:
    """Finds frames in a stream of bytes; skips noise and damaged frames.

    A byte is summed up a bounded number of times, whatever is sent: work grows with the bytes, not with their square.

    Args:
        max_payload: longest payload that is believed.
    """

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self._buffer = bytearray()
        self._max = max_payload
        self._damaged = 0
        """Frames with a wrong sum that cover the buffer's first byte, or lie over one that does."""
        self._covered = 0
        """Bytes of the buffer up to which they reach."""

    def feed(self, data: bytes) -> list[Frame]:
        """Take in bytes; the frames that are whole now. Keeps at most one frame's bytes."""
        self._buffer += data
        found: list[Frame] = []
        while (frame := self._next()) is not None:
            found.append(frame)
        return found

    def _next(self) -> Frame | None:
        while True:
            start = self._buffer.find(MAGIC)
            if start < 0:
                self._skip(max(0, len(self._buffer) - 1))
                return None
            self._skip(start)
            if len(self._buffer) < len(MAGIC) + _HEAD.size:
                return None
            kind, sequence, length = _HEAD.unpack_from(self._buffer, len(MAGIC))
            if length > self._max:
                self._skip(1)
                continue
            end = len(MAGIC) + _HEAD.size + length
            if len(self._buffer) < end + _CRC.size:
                return None
            body = bytes(self._buffer[len(MAGIC) : end])
            (crc,) = _CRC.unpack_from(self._buffer, end)
            if crc != zlib.crc32(body):
                # Length or payload may be what was damaged: a frame may begin within.
                self._damaged += 1
                self._covered = max(self._covered, end + _CRC.size)
                self._skip(1 if self._damaged <= _MAX_RESCANS else self._covered)
                continue
            self._skip(end + _CRC.size)
            return Frame(kind, sequence, body[_HEAD.size :])

    def _skip(self, count: int) -> None:
        """Forget the buffer's first bytes."""
        del self._buffer[:count]
        self._covered = max(0, self._covered - count)
        if not self._covered:
            self._damaged = 0


def parse_hello(payload: bytes) -> Hello:
    """Raises `MalformedError` unless it is an answer to HELLO."""
    if len(payload) < _HELLO.size:
        raise MalformedError("the board's greeting is too short")
    protocol, inputs, outputs, arena, identity = _HELLO.unpack_from(payload)
    count = inputs + outputs
    if not 1 <= inputs <= _MAX_TENSORS or not 1 <= outputs <= _MAX_TENSORS:
        raise MalformedError(f"the board's greeting names {inputs} inputs and {outputs} outputs")
    if len(payload) != _HELLO.size + count * _SIZE.size:
        raise MalformedError("the board's greeting has the wrong length")
    sizes = [s for (s,) in _SIZE.iter_unpack(payload[_HELLO.size :])]
    if not all(1 <= s <= MAX_PAYLOAD for s in sizes):
        raise MalformedError("the board's greeting names a tensor that no frame holds")
    return Hello(protocol, arena, identity.hex(), tuple(sizes[:inputs]), tuple(sizes[inputs:]))


def parse_stats(payload: bytes) -> Stats:
    """Raises `MalformedError` unless it is an answer to STATS."""
    if len(payload) != _STATS.size:
        raise MalformedError("the board's figures have the wrong length")
    return Stats(*_STATS.unpack(payload))


def refusal(payload: bytes) -> str:
    """Why a board refused, in words."""
    code = payload[0] if len(payload) == 1 else -1
    return REFUSALS.get(code, f"the board refused with code {code}")
