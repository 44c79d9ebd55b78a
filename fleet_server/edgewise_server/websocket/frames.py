"""WebSocket frames (RFC 6455 section 5), as far as MQTT needs them. Pure.

MQTT takes the payloads of binary frames as one stream of bytes: a packet may be spread over frames, and a frame may
hold several (MQTT 5.0 section 6). So a payload is handed on as it arrives, and no frame is ever held whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

MAX_CONTROL: Final = 125
"""Bytes of a control frame's payload (RFC 6455 section 5.5)."""
_MAX_LENGTH: Final = 1 << 63


class Opcode(IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class FrameError(Exception):
    """The peer breaks the protocol."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a data frame's payload, or a whole control frame."""

    opcode: Opcode
    payload: bytes


@dataclass
class Decoder:
    """Takes the bytes that a client sent, and gives pieces back. Holds at most one control frame and one header."""

    _buffer: bytearray = field(default_factory=bytearray)
    _opcode: Opcode = Opcode.BINARY
    _left: int = 0
    _mask: bytes = b""
    _within: bool = False
    """A header has been read, and its payload has not ended."""
    _open: bool = False
    """A fragmented message has begun and not ended."""

    def feed(self, data: bytes) -> list[Piece]:
        """The pieces that `data` completes.

        Raises:
            FrameError: an unmasked frame, a text frame, a reserved bit or opcode, or a control frame that is too long.
        """
        self._buffer += data
        pieces: list[Piece] = []
        while self._within or self._header():
            control = self._opcode >= Opcode.CLOSE
            if self._left and (not self._buffer or (control and len(self._buffer) < self._left)):
                break
            piece = self._take()
            if piece.payload or control:
                pieces.append(piece)
        return pieces

    def _header(self) -> bool:
        """Read a frame's header; whether it is complete."""
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        first, second = buffer[0], buffer[1]
        if first & 0x70:
            raise FrameError("a reserved bit is set, and no extension was agreed on")
        if not second & 0x80:
            raise FrameError("a client's frame must be masked")
        short = second & 0x7F
        size = {126: 2, 127: 8}.get(short, 0)
        if len(buffer) < 2 + size + 4:
            return False
        length = int.from_bytes(buffer[2 : 2 + size]) if size else short
        self._check(first & 0x0F, bool(first & 0x80), length)
        self._mask = bytes(buffer[2 + size : 6 + size])
        self._left, self._within = length, True
        del buffer[: 6 + size]
        return True

    def _check(self, code: int, final: bool, length: int) -> None:
        try:
            opcode = Opcode(code)
        except ValueError as error:
            raise FrameError(f"the opcode {code} is reserved") from error
        if opcode >= Opcode.CLOSE:
            if not final or length > MAX_CONTROL:
                raise FrameError("a control frame is fragmented, or longer than 125 bytes")
        elif opcode == Opcode.TEXT:
            raise FrameError("MQTT travels in binary frames")
        elif (opcode == Opcode.CONTINUATION) != self._open:
            raise FrameError("a fragment without a beginning, or a message within another")
        else:
            self._open = not final
        if length >= _MAX_LENGTH:
            raise FrameError("a frame's length has its highest bit set")
        self._opcode = opcode

    def _take(self) -> Piece:
        """What there is of the payload."""
        count = min(self._left, len(self._buffer))
        payload = unmask(bytes(self._buffer[:count]), self._mask)
        del self._buffer[:count]
        self._left -= count
        self._within = self._left > 0
        turn = count % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        return Piece(self._opcode, payload)


def unmask(payload: bytes, mask: bytes) -> bytes:
    """Payload exclusive-or the repeated mask; its own inverse (RFC 6455 section 5.3)."""
    count = len(payload)
    repeated = (mask * (count // 4 + 1))[:count]
    return (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(count)


def encode(opcode: Opcode, payload: bytes) -> bytes:
    """One whole frame of a server, which masks nothing."""
    length = len(payload)
    head = bytes([0x80 | opcode])
    if length < 126:
        return head + bytes([length]) + payload
    if length < 1 << 16:
        return head + bytes([126]) + length.to_bytes(2) + payload
    return head + bytes([127]) + length.to_bytes(8) + payload
