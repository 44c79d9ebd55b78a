"""How far a device's stream is stored: the rule by which a device may delete what it holds. Pure.

A message names the sequence before it that the device still held when it sent it (`after`). Sequences only grow, and
what a device has deleted it never sends again, so that statement stays true whenever and however often it arrives.
Hence the invariant: **each sequence up to `through` is stored, or the device no longer holds it.** Time plays no part:
a gap that the device still holds is waited for as long as it takes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

MAX_BEYOND_GAP: Final = 1_024
"""Messages of one stream that are stored beyond a gap; an honest device has 80 under way at most."""


@dataclass(frozen=True, slots=True)
class Position:
    """Of one stream: stored or given up through `through`; nothing above `highest` is stored."""

    through: int = 0
    highest: int = 0

    @property
    def has_gap(self) -> bool:
        return self.highest > self.through


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a batch does to a stream."""

    position: Position
    fresh: tuple[int, ...]
    """Sequences that are to be stored now, ascending."""


def arrive(position: Position, stored: Collection[int], arrivals: Mapping[int, int | None]) -> Arrived:
    """Take messages of one stream in.

    Args:
        position: where the stream stands.
        stored: the stored sequences above `through`; empty where there is no gap.
        arrivals: `after` by sequence; None where the message has none.

    What is at or below `through` is a duplicate, or was given up by the device; it is dropped. So is what would be
    stored beyond a gap after `MAX_BEYOND_GAP` others: the device sends it again once the gap is closed.
    """
    through, waiting = position.through, len(stored)
    fresh: list[int] = []
    for seq in sorted({*stored, *arrivals}):
        if seq <= position.through:
            continue
        after = arrivals.get(seq)
        if (seq - 1 if after is None else min(after, seq - 1)) <= through:
            through = seq
        elif seq not in stored:
            if waiting >= MAX_BEYOND_GAP:
                continue
            waiting += 1
        if seq not in stored:
            fresh.append(seq)
    return Arrived(Position(through, max(position.highest, through, *fresh[-1:])), tuple(fresh))
