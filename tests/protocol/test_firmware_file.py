"""Danger: a damaged firmware file that is no error of ours, and ends whoever reads it."""

from __future__ import annotations

import pytest
from edgewise_protocol.errors import BundleError, ProtocolError
from edgewise_protocol.firmware import Firmware, FirmwareTensor, pack, unpack

TENSOR = FirmwareTensor(name="x", shape=(1, 4), scale=0.1, zero_point=0)
FIRMWARE = Firmware(spec_version="1.0", identity="a" * 64, inputs=(TENSOR,), outputs=(TENSOR,), arena_bytes=0)
FILE = pack(FIRMWARE, {"model.c": b"int x;" * 20})
_DIRECTORY_FLAGS = 8


def test_a_member_that_says_it_is_encrypted_is_refused() -> None:
    broken = bytearray(FILE)
    broken[FILE.index(b"PK\x01\x02") + _DIRECTORY_FLAGS] |= 1
    with pytest.raises(BundleError, match="encrypted"):
        unpack(bytes(broken))


def test_every_bit_of_damage_is_read_or_refused() -> None:
    read = refused = 0
    for place in range(len(FILE)):
        for bit in range(8):
            broken = bytearray(FILE)
            broken[place] ^= 1 << bit
            try:
                unpack(bytes(broken))
                read += 1
            except ProtocolError:
                refused += 1
    assert read + refused == 8 * len(FILE) and refused > read
