"""Golden inputs on an emulated board: what a bundle of format `c99` is proven by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from edgewise_profiles.schema import Profile
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.firmware import FirmwareTensor, unpack
from edgewise_protocol.frames import Stats
from numpy.typing import NDArray

from edgewise_converter.c99.affine import dequantize, quantize
from edgewise_converter.c99.emulator import has_emulator, run_image
from edgewise_converter.c99.link import FirmwareRunError
from edgewise_converter.errors import ModelFileError

Tensors = dict[str, NDArray[Any]]


def why_not(data: bytes, profile: Profile) -> str:
    """Why a file cannot be run on an emulated board here; empty where it can."""
    if profile.mcu is None or not profile.mcu.emulator:
        return f"{profile.id} names no emulator of a board"
    if unpack(data).image is None:
        return "it holds no firmware image: install gcc-arm-none-eabi and libnewlib-arm-none-eabi, and convert it again"
    return "" if has_emulator() else "qemu-system-arm is not installed: apt install qemu-system-arm"


def run(data: bytes, profile: Profile, feeds: Mapping[str, NDArray[Any]]) -> tuple[Tensors, Stats]:
    """Answer requests on the emulated board of a profile.

    Args:
        data: a file of format `c99` with an image.
        profile: of the board.
        feeds: inputs by name, (N, ...) in the file's shapes behind N; real numbers, or int8 as they are. Where the
            names are others, the order counts.

    Returns:
        outputs by name, (N, ...) real numbers, and what the board measured.

    Raises:
        ModelFileError: the file is damaged, or its inputs are not those.
        FirmwareRunError: the board does not run, does not answer, or runs another firmware than the file describes.
    """
    try:
        file = unpack(data)
    except ProtocolError as error:
        raise ModelFileError(str(error)) from error
    image, mcu = file.image, profile.mcu
    if image is None or mcu is None:
        raise FirmwareRunError(f"nothing runs on a board: {why_not(data, profile)}")
    if file.firmware.board != profile.id:
        raise FirmwareRunError(f"the firmware is for {file.firmware.board[:64]!r}, not for {profile.id}")
    taken, given = file.firmware.inputs, file.firmware.outputs
    if len(feeds) != len(taken):
        raise ModelFileError(f"the firmware has {len(taken)} inputs; the bundle names {len(feeds)}")
    named = all(tensor.name in feeds for tensor in taken)
    arrays = [feeds[t.name] if named else feed for t, feed in zip(taken, feeds.values(), strict=True)]
    rows = [_rows(tensor, array) for tensor, array in zip(taken, arrays, strict=True)]
    counts = [len(row) for row in rows]
    if len(set(counts)) != 1 or not counts[0]:
        raise ModelFileError(f"the golden inputs hold {counts} requests; each must hold as many, and one at least")
    requests = [b"".join(row[i].tobytes() for row in rows) for i in range(counts[0])]
    _, answers, stats = run_image(image, mcu, requests, file.firmware)
    found: Tensors = {}
    at = 0
    for tensor in given:
        whole = np.stack([np.frombuffer(a, np.int8, tensor.size, at).reshape(tensor.shape) for a in answers])
        shape = (len(answers) * tensor.shape[0], *tensor.shape[1:])
        found[tensor.name] = dequantize(whole, tensor).reshape(shape)
        at += tensor.size
    return found, stats


def _rows(tensor: FirmwareTensor, array: NDArray[Any]) -> NDArray[np.int8]:
    """Whole requests of an input, (N, size) int8."""
    if array.size % tensor.size:
        raise FirmwareRunError(f"the input {tensor.name[:80]!r} has {array.size} values; a request has {tensor.size}")
    flat = np.ascontiguousarray(array).reshape(-1, tensor.size)
    return flat if flat.dtype == np.int8 else quantize(flat, tensor)
