"""Where each intermediate tensor lies in one static arena. Pure.

Tensors that live at the same time do not overlap. Placing blocks greedily, largest first, is
Pisarchyk & Lee 2020, "Efficient memory management for deep neural net inference"; other orders
are tried too, and the best is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

ALIGNMENT: Final = 4


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes that are needed from one operator to another, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Block) -> bool:
        """Whether both are needed at some time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class Plan:
    """Offsets by block, and what they take together."""

    offsets: Mapping[int, int]
    size: int


_ORDERS: Final[tuple[Callable[[Block], tuple[int, ...]], ...]] = (
    lambda b: (-b.size, b.first, b.last),
    lambda b: (-b.size * (b.last - b.first + 1), b.first),
    lambda b: (b.first, -b.size),
    lambda b: (-(b.last - b.first), -b.size, b.first),
)


def plan(blocks: Mapping[int, Block]) -> Plan:
    """Place blocks; the smallest arena of several orders."""
    plans = [_place(blocks, _sorted(blocks, order)) for order in _ORDERS]
    return min(plans, key=lambda found: found.size)


def lower_bound(blocks: Mapping[int, Block]) -> int:
    """No arena is smaller: the most bytes that are needed at one time."""
    times = {block.first for block in blocks.values()}
    return max((sum(_aligned(b.size) for b in blocks.values() if b.first <= t <= b.last) for t in times), default=0)


def _sorted(blocks: Mapping[int, Block], order: Callable[[Block], tuple[int, ...]]) -> list[int]:
    return sorted(blocks, key=lambda key: (order(blocks[key]), key))


def _place(blocks: Mapping[int, Block], order: Sequence[int]) -> Plan:
    offsets: dict[int, int] = {}
    size = 0
    for key in order:
        block = blocks[key]
        taken = sorted((offsets[k], offsets[k] + _aligned(blocks[k].size)) for k in offsets if blocks[k].meets(block))
        at = 0
        for start, end in taken:
            if at + block.size <= start:
                break
            at = max(at, end)
        offsets[key] = at
        size = max(size, at + _aligned(block.size))
    return Plan(offsets, size)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
