"""The device's own training data: a safetensors file with `x` (N, ...) and `y` (N,).

The agent's process reads only the file's header; the samples are read by the training
process, and by nothing else.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

import msgspec

from edgewise_agent.learning.errors import LocalDataError

_MAX_HEADER: Final = 1024 * 1024


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]


def count_samples(path: Path) -> int:
    """How many samples the file holds.

    Raises:
        LocalDataError: it is not there, or does not hold `x` and `y` of one length.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER:
                raise LocalDataError(f"{path.name} is not a safetensors file: its header has {length} bytes")
            header: dict[str, Any] = msgspec.json.decode(file.read(length))
        x, y = (msgspec.convert(header.get(name), _Entry) for name in ("x", "y"))
    except (OSError, struct.error, msgspec.MsgspecError, AttributeError, UnicodeDecodeError) as error:
        raise LocalDataError(f"{path.name} is not a safetensors file with x and y: {error}") from error
    if not x.shape or not y.shape or x.shape[0] != y.shape[0]:
        raise LocalDataError(f"{path.name} holds x of shape {x.shape} and y of shape {y.shape}")
    return x.shape[0]
