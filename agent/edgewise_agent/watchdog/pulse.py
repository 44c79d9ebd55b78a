"""Last-progress times of the agent's parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgewise_agent.watchdog.liveness import Part

Beat = Callable[[], None]
"""Says that a part has made progress. Any thread; costs next to nothing."""


def no_beat() -> None:
    """For parts that nobody watches."""


class Pulse:
    """Args:
    parts: what is watched, from the first beat of each on.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = {part.name: part for part in parts}
        self._last: dict[str, float] = {}

    def beat(self, name: str) -> Beat:
        """What the part of this name calls when it makes progress."""
        part = self._parts[name]

        def beat() -> None:
            # One assignment to a dict is atomic in CPython: no lock on paths as hot as a download's.
            self._last[part.name] = time.monotonic()

        return beat

    def taken(self) -> dict[Part, float]:
        """Each part that has begun, and the time of its last progress."""
        return {self._parts[name]: at for name, at in list(self._last.items())}
