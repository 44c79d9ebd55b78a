"""What an image takes of flash and memory, from its ELF sections. Pure.

Source: System V ABI, "Object Files"; 32-bit little-endian, as Arm microcontrollers are.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from edgewise_converter.errors import PassError

_IDENT: Final = b"\x7fELF\x01\x01"
_HEADER: Final = struct.Struct("<16s2H5I6H")
_SECTION: Final = struct.Struct("<10I")
_MAX_SECTIONS: Final = 1024
_WRITE, _ALLOC, _NOBITS = 1, 2, 8


class Footprint(NamedTuple):
    """Bytes of an image."""

    flash: int
    """Code, constants, and the initial values of variables."""
    ram: int
    """Variables, arena and stack."""


def footprint(image: bytes) -> Footprint:
    """What an image takes.

    Raises:
        PassError: it is no 32-bit little-endian ELF file, or damaged.
    """
    if len(image) < _HEADER.size or not image.startswith(_IDENT):
        raise PassError("the image is no 32-bit ELF file")
    fields = _HEADER.unpack_from(image)
    offset, entry, count = fields[6], fields[11], fields[12]
    if entry != _SECTION.size or count > _MAX_SECTIONS or offset + count * entry > len(image):
        raise PassError("the image's section table is damaged")
    flash = ram = 0
    for index in range(count):
        _, kind, flags, _, _, size, *_ = _SECTION.unpack_from(image, offset + index * entry)
        if not flags & _ALLOC:
            continue
        if kind != _NOBITS:
            flash += size
        if flags & _WRITE:
            ram += size
    return Footprint(flash, ram)
