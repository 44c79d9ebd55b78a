"""Whether the parts of the agent make progress. Pure.

A part that works says so at each step of its work, and while it waits for work at bounded
intervals: silence means stuck or dead, however idle the device is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

IDLE_S: Final = 5.0
"""Longest wait for work after which a part says that it is there."""


@dataclass(frozen=True)
class Part:
    """A part that must make progress."""

    name: str
    limit_s: float
    """Longest silence that its longest single step explains, seconds."""


@dataclass(frozen=True)
class Stall:
    """A part that has been silent for too long."""

    name: str
    silent_s: float


def judge(parts: Mapping[Part, float], now: float) -> tuple[Stall, ...]:
    """The stuck parts, most silent first.

    Args:
        parts: each part, and the monotonic time of its last progress.
        now: monotonic seconds.
    """
    stalls = [Stall(part.name, now - last) for part, last in parts.items() if now - last > part.limit_s]
    return tuple(sorted(stalls, key=lambda stall: -stall.silent_s))


def period(watchdog_s: float) -> float:
    """Seconds between signs of life: half of the service manager's time, as sd_watchdog_enabled(3) advises."""
    return min(watchdog_s / 2, IDLE_S) if watchdog_s > 0 else IDLE_S
