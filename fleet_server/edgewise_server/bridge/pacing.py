"""How fast one device may send, so that none takes the others' share. Pure but for its memory.

A device that keeps to the protocol sends a window and waits for the acknowledgement: to hold that back is enough, and
costs it nothing. One that sends all the same is dropped once it owes as much again.
"""

from __future__ import annotations

from typing import Final

BURST_S: Final = 10.0
"""A device may send this many seconds' worth at once: what it kept while it was offline."""
MAX_DEVICES: Final = 100_000


class Pacer:
    """A token bucket for each device that was heard lately. Times are monotonic seconds.

    Args:
        per_s: messages that one device may send each second in the long run.
    """

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._burst = max(1.0, per_s * BURST_S)
        self._levels: dict[str, tuple[float, float]] = {}

    def admit(self, device_id: str, now: float) -> bool:
        """Count a message; false where it is to be dropped."""
        level = self._level(device_id, now) - 1.0
        if level < -self._burst:
            return False
        if len(self._levels) >= MAX_DEVICES and device_id not in self._levels:
            self._forget(now)
        self._levels[device_id] = (level, now)
        return True

    def may_go_on(self, device_id: str, now: float) -> bool:
        """Whether the device may be told to send more."""
        return self._level(device_id, now) >= 0.0

    def _level(self, device_id: str, now: float) -> float:
        level, at = self._levels.get(device_id, (self._burst, now))
        return min(self._burst, level + (now - at) * self._per_s)

    def _forget(self, now: float) -> None:
        """Forget the devices that owe nothing; if all owe something, the oldest half."""
        owing = {name: found for name, found in self._levels.items() if self._level(name, now) < self._burst}
        kept = sorted(owing, key=lambda name: owing[name][1])[-MAX_DEVICES // 2 :]
        self._levels = {name: owing[name] for name in kept}
