"""The model file of format `c99`: sources, a firmware image where one was built, and what a gateway must know.

A zip of stored members with fixed dates, `firmware.json` first: equal contents give equal bytes.
Reading trusts nothing; the digest of the whole stands in the bundle's manifest.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from edgewise_protocol.errors import BundleError, MalformedError
from edgewise_protocol.frames import MAX_PAYLOAD
from edgewise_protocol.manifest import Name, Sha256, check_major

SPEC_VERSION: Final = "1.0"
DESCRIPTION_FILE: Final = "firmware.json"
IMAGE_FILE: Final = "firmware.elf"
MAX_FILE_BYTES: Final = 128 << 20
MAX_MEMBERS: Final = 32
_MAX_DESCRIPTION: Final = 64 * 1024
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
Dimension = Annotated[int, Meta(ge=1, le=MAX_PAYLOAD)]


class FirmwareTensor(msgspec.Struct, frozen=True, kw_only=True):
    """An int8 tensor of the firmware: real = scale * (integer - zero_point)."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    shape: Annotated[tuple[Dimension, ...], Meta(min_length=1, max_length=8)]
    scale: Annotated[float, Meta(gt=0)]
    zero_point: Annotated[int, Meta(ge=-128, le=127)]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape)


class Firmware(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a gateway must know of a model for a board."""

    spec_version: str
    identity: Sha256
    """Of the model's sources; the firmware tells it in its greeting."""
    inputs: Annotated[tuple[FirmwareTensor, ...], Meta(min_length=1, max_length=8)]
    outputs: Annotated[tuple[FirmwareTensor, ...], Meta(min_length=1, max_length=8)]
    arena_bytes: Annotated[int, Meta(ge=0)]
    board: Annotated[str, Meta(max_length=64)] = ""
    """Profile that the image was built for; empty where there are sources alone."""
    image: Annotated[str, Meta(max_length=64)] = ""
    """The member that is the image, an ELF file; empty where there is none."""
    flash_bytes: Annotated[int, Meta(ge=0)] = 0
    """Code, constants and initial values of the image."""
    ram_bytes: Annotated[int, Meta(ge=0)] = 0
    """Static memory of the image, arena and stack included."""
    stack_bytes: Annotated[int, Meta(ge=0)] = 0
    """Peak of the stack, measured in the emulator; 0 where it was not."""


class FirmwareFile(msgspec.Struct, frozen=True):
    """A read file of format `c99`."""

    firmware: Firmware
    members: Mapping[str, bytes]
    """All but the description."""

    @property
    def image(self) -> bytes | None:
        """The firmware image, if there is one."""
        return self.members.get(self.firmware.image) if self.firmware.image else None


def pack(firmware: Firmware, members: Mapping[str, bytes]) -> bytes:
    """The file's bytes."""
    text = msgspec.json.format(msgspec.json.encode(firmware, order="sorted"), indent=1) + b"\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [(DESCRIPTION_FILE, text), *sorted(members.items())]:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    return out.getvalue()


def unpack(data: bytes) -> FirmwareFile:
    """Read the file.

    Raises:
        BundleError: it is no such file, or damaged.
        MalformedError, UnsupportedVersionError: its description is not valid.
    """
    if len(data) > MAX_FILE_BYTES:
        raise BundleError(f"the firmware file has {len(data)} bytes; at most {MAX_FILE_BYTES} are allowed")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if len(names) > MAX_MEMBERS or len(set(names)) != len(names) or DESCRIPTION_FILE not in names:
                raise BundleError("the firmware file has too many members, one twice, or no description")
            for info in infos:
                msgspec.convert(info.filename, Name)
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                    raise BundleError("the firmware file holds members that are not stored plainly")
            members = {info.filename: archive.read(info) for info in infos}
    except msgspec.ValidationError as error:
        raise BundleError(f"the firmware file holds a member with a strange name: {error}") from error
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, OverflowError, KeyError) as error:
        # RuntimeError: a member that says it is encrypted, or stored in a way that Python does not have.
        raise BundleError(f"this is not a firmware file: {error}") from error
    text = members.pop(DESCRIPTION_FILE)
    if len(text) > _MAX_DESCRIPTION:
        raise MalformedError("the firmware's description is too long")
    try:
        firmware = msgspec.json.decode(text, type=Firmware)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedError(f"the firmware's description is not valid: {error}") from error
    check_major(firmware.spec_version, SPEC_VERSION)
    if firmware.image and firmware.image not in members:
        raise MalformedError("the firmware's description names an image that is not there")
    if sum(tensor.size for tensor in firmware.inputs) > MAX_PAYLOAD:
        raise MalformedError("the firmware's inputs do not go into one frame")
    return FirmwareFile(firmware, members)
