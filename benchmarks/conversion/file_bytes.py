"""Real files as magika sees them: the first and the last 1,024 bytes, stripped and padded.

After `Magika._extract_features_from_seekable` of magika 1.0.3.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK, _SIDE, _PADDING = 4096, 1024, 256
_SMALLEST: Final = 64
_LARGEST: Final = 1 << 25
_PER_SUFFIX: Final = 60


def rows_of_files(more: Path, count: int) -> NDArray[np.int32]:
    """Files of this machine (count, 2048), at most 60 of a suffix, in an order that hangs on their names.

    Args:
        more: a folder of unpacked packages, whose files are taken too.
        count: how many; fewer where there are fewer.
    """
    roots = (more, Path(sysconfig.get_path("stdlib")), Path("/usr/share"))
    known: dict[str, Path] = {}
    for root in roots:
        for path in root.rglob("*"):
            if path.suffix and not path.is_symlink() and path.is_file():
                known.setdefault(str(path.relative_to(root)), path)
    order = sorted(known, key=lambda name: hashlib.sha256(name.encode()).digest())
    seen: Counter[str] = Counter()
    rows: list[NDArray[np.int32]] = []
    for name in order:
        path = known[name]
        if len(rows) == count:
            break
        if seen[path.suffix] >= _PER_SUFFIX or not _SMALLEST <= path.stat().st_size <= _LARGEST:
            continue
        seen[path.suffix] += 1
        rows.append(row_of(path.read_bytes()))
    return np.stack(rows)


def row_of(data: bytes) -> NDArray[np.int32]:
    """What the model gets of a file's content, (2048,)."""
    begin, end = data[:_BLOCK].lstrip()[:_SIDE], data[-_BLOCK:].rstrip()[-_SIDE:]
    row = np.full(2 * _SIDE, _PADDING, np.int32)
    row[: len(begin)] = np.frombuffer(begin, np.uint8)
    row[2 * _SIDE - len(end) :] = np.frombuffer(end, np.uint8)
    return row
