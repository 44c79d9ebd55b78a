"""Whether bytes are a serialized KLL floats sketch. Pure.

Apache DataSketches reads them in C++ and trusts the positions that they hold: a forged
sketch reads beyond its memory and takes the process down. So everything that the reader
relies on is held against the format first (datasketches-cpp 5, `kll_sketch::serialize`):

    u8 preamble ints, u8 version, u8 family, u8 flags, u16 k, u8 m, u8 -
    one item: f32
    more:     u64 n, u16 min k, u8 levels, u8 -, u32 start of each level, f32 min, f32 max, f32 items
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final

import numpy as np

from edgewise_protocol.errors import SketchError

_FAMILY: Final = 15
_M: Final = 8
_SHORT: Final = (2, 2)
"""Preamble ints and version of a sketch of one item."""
_FULL: Final = (5, 1)
_SORTED: Final = 2
"""Flag: level 0 is sorted; the levels above always are."""
_SINGLE: Final = 4
_MAX_LEVELS: Final = 48


def check_kll(data: bytes, k: int) -> None:
    """Raise `SketchError` unless `data` is a sketch of parameter `k` with at least one item, all of them finite."""
    if len(data) < 8:
        raise SketchError("not a KLL sketch: it is truncated")
    preamble, version, family, flags, found_k, m = struct.unpack_from("<BBBBHB", data)
    if (family, found_k, m) != (_FAMILY, k, _M):
        raise SketchError(f"not a KLL sketch of k = {k}")
    if (preamble, version) == _SHORT and flags & ~_SORTED == _SINGLE and len(data) == 12:
        items = np.frombuffer(data, "<f4", offset=8)
    elif (preamble, version) == _FULL and flags & ~_SORTED == 0 and len(data) > 20:
        items = _check_levels(data, k, level_0_sorted=bool(flags & _SORTED))
    else:
        raise SketchError("not a KLL sketch, or an empty one")
    if not np.isfinite(items).all():
        raise SketchError("a KLL sketch holds values that are not finite")


def _check_levels(data: bytes, k: int, *, level_0_sorted: bool) -> np.ndarray:
    n, min_k, levels = struct.unpack_from("<QHB", data, 8)
    if not 1 <= levels <= _MAX_LEVELS or not _M <= min_k <= k:
        raise SketchError("a KLL sketch has an impossible number of levels")
    capacity = sum(_capacity(k, levels - 1 - height) for height in range(levels))
    begin = 20 + 4 * levels
    if len(data) < begin + 8:
        raise SketchError("a KLL sketch is truncated")
    starts = [*struct.unpack_from(f"<{levels}I", data, 20), capacity]
    if any(b < a for a, b in pairwise(starts)) or len(data) != begin + 8 + 4 * (capacity - starts[0]):
        raise SketchError("a KLL sketch's levels do not fit its length")
    if n < 2 or n != sum((b - a) << height for height, (a, b) in enumerate(pairwise(starts))):
        raise SketchError("a KLL sketch counts other items than it holds")
    found = np.frombuffer(data, "<f4", offset=begin)
    low, high, items = found[0], found[1], found[2:]
    for height, (a, b) in enumerate(pairwise(starts)):
        level = items[a - starts[0] : b - starts[0]]
        if (height or level_0_sorted) and (level[1:] < level[:-1]).any():
            raise SketchError("a KLL sketch's level is not sorted")
    if not (low <= high and (items >= low).all() and (items <= high).all()):
        raise SketchError("a KLL sketch holds values beyond its range")
    return found


def _capacity(k: int, depth: int) -> int:
    """Items of a level, `depth` below the top one."""
    if depth > 30:
        half = depth // 2
        return max(_M, _shrunk(_shrunk(k, half), depth - half))
    return max(_M, _shrunk(k, depth))


def _shrunk(k: int, depth: int) -> int:
    """`k` times (2/3)^depth, rounded half up."""
    shrunk: int = (((2 * k) << depth) // 3**depth + 1) >> 1
    return shrunk
