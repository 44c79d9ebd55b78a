"""Acknowledgements of stored streams on their way to the devices: the newest of each stream, a few times a second.

Nothing here is durable, nor need it be: a device that hears nothing sends again, and is answered then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FLUSH_S: Final = 0.25
"""Longest wait of an acknowledgement for others of its stream, while there is much to do."""
MAX_HELD: Final = 100_000


class AckBox:
    """Gathers what is to be said, and hands it out. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], int] = {}
        self._flushed = 0.0

    def put(self, device_id: str, stream: str, through: int) -> None:
        """Hold an acknowledgement; a later one of its stream takes its place."""
        key = (device_id, stream)
        if len(self._held) < MAX_HELD or key in self._held:
            self._held[key] = max(through, self._held.get(key, 0))

    def due_in(self, now: float) -> float | None:
        """Seconds until something may be handed out; None where nothing is held."""
        return max(0.0, self._flushed + FLUSH_S - now) if self._held else None

    def take(self, now: float, may_go_on: Callable[[str, float], bool], *, wait: bool) -> list[tuple[str, str, int]]:
        """(device, stream, through) of those that may go on; with `wait` only `FLUSH_S` after the last time."""
        if not self._held or (wait and self.due_in(now) != 0.0):
            return []
        self._flushed = now
        due = [(*key, through) for key, through in self._held.items() if may_go_on(key[0], now)]
        for device_id, stream, _ in due:
            del self._held[device_id, stream]
        return due
