"""The geometry of a search's chart: what is drawn where, for the picture and the page alike. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise_converter.search.result import Row, SearchResult

_LOG_FROM: Final = 8.0
"""An axis whose values span more than this factor is logarithmic."""
_DOT: Final = 8.0
"""Half the width of what a point covers, pixels."""
_RINGED: Final = 13.0
_ANGLES: Final = -np.pi / 4 + 2 * np.pi * np.arange(16) / 16
_RADIUS: Final = np.repeat([15.0, 20.0, 28.0, 38.0, 50.0, 64.0, 80.0], 16)
_COS, _SIN = np.tile(np.cos(_ANGLES), 7), np.tile(np.sin(_ANGLES), 7)
_FAR: Final = 16.0
_KIB: Final = 1024


class Point(NamedTuple):
    """A candidate on the chart."""

    number: int
    """As in the table, from 1."""
    row: Row
    latency_ms: float | None
    """None where it was not timed: it stands in a strip of its own."""
    size_kib: float
    front: bool
    """Whether no other that was not rejected is both as small and as fast."""


class Axis(NamedTuple):
    """From values to [0, 1]."""

    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        """The place of a value, 0 at `low`, 1 at `high`."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if math.log10(self.high / self.low) < 2.5 else (1,)
            found = [step * 10.0**decade for decade in decades for step in steps]
        else:
            raw = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(raw))
            step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
            found = [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [tick for tick in found if self.low <= tick <= self.high]


def points(result: SearchResult) -> tuple[Point, ...]:
    """Every candidate that was made, in the table's order."""
    made = [(i, row, row.size_bytes / _KIB) for i, row in enumerate(result.rows, 1) if row.size_bytes]
    kept = [(kib, row.latency_ms) for _, row, kib in made if row.verdict != "rejected" and row.latency_ms]
    return tuple(
        Point(
            i,
            row,
            row.latency_ms or None,
            kib,
            row.verdict != "rejected"
            and row.latency_ms is not None
            and not any(
                k <= kib and ms <= row.latency_ms and (k, ms) != (kib, row.latency_ms)
                for k, ms in kept
                if ms is not None
            ),
        )
        for i, row, kib in made
    )


def front(found: Sequence[Point]) -> list[Point]:
    """The points of the front from the fastest to the smallest."""
    return sorted((p for p in found if p.front), key=lambda p: (p.latency_ms or 0.0, -p.size_kib))


def axis(values: Sequence[float]) -> Axis:
    """An axis on which the values stand with room around them.

    Args:
        values: positive.
    """
    low, high = (min(values), max(values)) if values else (1.0, 2.0)
    if high > _LOG_FROM * low:
        room = (high / low) ** 0.09
        return Axis(low / room, high * room, True)
    room = 0.1 * (high - low) or 0.25 * high
    return Axis(max(0.0, low - room), high + room, False)


def share(row: Row, accuracy_drop: float) -> float | None:
    """What a candidate lost as a share of what it may lose, in [0, 1]; None where it is not known."""
    if row.score is None:
        return None
    return min(1.0, max(0.0, row.score.drop / (accuracy_drop or 1.0)))


def place(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    area: tuple[float, float, float, float],
    line: Sequence[tuple[float, float]] = (),
    ringed: Sequence[bool] = (),
) -> list[tuple[float, float]]:
    """Where labels stand, so that they cover neither points nor each other as far as there is room.

    Args:
        anchors: the points, pixels.
        sizes: width and height of each point's label, pixels.
        area: left, top, right, bottom that labels keep to.
        line: corners of a line that labels keep off, pixels.
        ringed: which points have a ring around them; none if empty.

    Returns:
        the centre of each label. The first are placed first, and stand nearest.
    """
    marks = [_RINGED if ring else _DOT for ring in ringed] or [_DOT] * len(anchors)
    kept_off = [(x - m, y - m, x + m, y + m) for (x, y), m in zip(anchors, marks, strict=True)]
    kept_off += [(x - 2, y - 2, x + 2, y + 2) for x, y in _along(line)]
    # Boxes of points and line, then of labels as they are placed; to lie on a label is worse.
    boxes = np.zeros((len(kept_off) + len(anchors), 4))
    weights = np.concatenate([np.ones(len(kept_off)), np.full(len(anchors), 3.0)])
    boxes[: len(kept_off)] = np.array(kept_off).reshape(-1, 4)
    found = []
    for i, ((x, y), (width, height)) in enumerate(zip(anchors, sizes, strict=True)):
        cx = np.clip(x + _COS * (_RADIUS + width / 2 - 4), area[0] + width / 2, area[2] - width / 2)
        cy = np.clip(y + _SIN * _RADIUS, area[1] + height / 2, area[3] - height / 2)
        tried = np.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], axis=1)
        known = len(kept_off) + i
        cost = _overlaps(tried, boxes[:known]) @ weights[:known]
        best = int(cost.argmin())  # the first of equal ones is the nearest
        boxes[known] = tried[best]
        found.append((float(cx[best]), float(cy[best])))
    return found


def far(anchor: tuple[float, float], label: tuple[float, float], size: tuple[float, float]) -> bool:
    """Whether a label stands so far from its point that a line must lead to it."""
    return abs(anchor[0] - label[0]) - size[0] / 2 > _FAR or abs(anchor[1] - label[1]) - size[1] / 2 > _FAR


def _along(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points on a line, close enough that no label slips between."""
    found = []
    for (x1, y1), (x2, y2) in itertools.pairwise(line):
        steps = min(400, max(1, int(math.hypot(x2 - x1, y2 - y1) / 4)))
        found += [(x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps) for i in range(steps + 1)]
    return found


def _overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The areas that boxes (N, 4) share with boxes (M, 4), shape (N, M)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared: NDArray[np.float64] = np.clip(high - low, 0.0, None).prod(axis=2)
    return shared
