"""Danger: a line whose bytes keep whoever listens busy, or a damaged frame that hides the next."""

from __future__ import annotations

import struct
import zlib
from types import SimpleNamespace

import pytest
from edgewise_protocol import frames
from edgewise_protocol.frames import INVOKE, Decoder, Frame, encode

SIZE = 1 << 18
GOOD = Frame(INVOKE, 7, b"payload")


def overlapping(step: int) -> bytes:
    """Heads of frames, each within the one before, that all end with the last byte and have a wrong sum."""
    data = bytearray()
    while len(data) + 16 < SIZE:
        data += (b"EW\x01\x01" + struct.pack("<I", SIZE - len(data) - 8)).ljust(step, b"\0")
    return bytes(data.ljust(SIZE + 4, b"\0"))


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each sum that the decoder takes."""
    found: list[int] = []

    def counting(body: bytes) -> int:
        found.append(len(body))
        return zlib.crc32(body)

    monkeypatch.setattr(frames, "zlib", SimpleNamespace(crc32=counting))
    return found


@pytest.mark.parametrize("step", [8, 64])
@pytest.mark.parametrize("at_once", [True, False])
def test_frames_that_lie_over_one_another_cost_by_the_byte(step: int, at_once: bool, summed: list[int]) -> None:
    data = overlapping(step)
    decoder = Decoder(SIZE)
    if not at_once:
        assert decoder.feed(data[:-1]) == [] and not summed
    assert decoder.feed(data[-1:] if not at_once else data) == []
    # Each byte at most ten times.
    assert sum(summed) <= 10 * len(data)
    # What follows is heard again.
    assert decoder.feed(encode(GOOD)) == [GOOD]


def test_short_claims_between_long_ones_buy_no_further_sums(summed: list[int]) -> None:
    data = bytearray(overlapping(32))
    for at in range(8, SIZE - 64, 32):
        data[at : at + 12] = b"EW\x01\x01" + bytes(8)
    Decoder(SIZE).feed(bytes(data))
    assert sum(summed) <= 10 * len(data)


def test_a_frame_within_a_damaged_one_is_found() -> None:
    longer = bytearray(encode(Frame(INVOKE, 6, bytes(20))))
    longer[4] += 30  # its length was damaged: the next frame lies within
    assert Decoder().feed(bytes(longer) + encode(GOOD) + bytes(40)) == [GOOD]


def test_one_damaged_frame_after_another_costs_none_that_is_whole() -> None:
    broken = bytearray(encode(GOOD))
    broken[-1] ^= 1
    assert Decoder().feed(bytes(broken) * 50 + encode(GOOD)) == [GOOD]
