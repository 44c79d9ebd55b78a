"""A floor under the clock, for boards that wake up in the past.

The floor is the newest time that verified documents prove to be past: the start of the
device certificate, and the moment of each successful refresh, which the expiry of the
verified timestamp bounds from above, so that a clock that was once ahead cannot lock the
device for longer than a timestamp lives. Below the floor the device serves, and installs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgewise_agent.durable import write_atomic
from edgewise_agent.errors import ClockBehindError, StateError

TOLERANCE_S: Final = 120.0
"""A clock may be set back by this much, as time synchronisation does."""
_STEP_S: Final = 60.0
"""The floor is written again when it has risen by this much."""
_MAX_BYTES: Final = 64


class ClockFloor:
    """A floor kept in a file.

    Args:
        path: the file.
        not_before: start of the device certificate's validity, epoch seconds.
        now: the system clock.
    """

    def __init__(self, path: Path, not_before: float = 0.0, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._floor = not_before
        try:
            data = path.read_bytes()[:_MAX_BYTES]
            self._floor = max(self._floor, float(data))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise StateError(f"{path.name} is unreadable: {error}") from error

    @property
    def floor(self) -> float:
        """Epoch seconds."""
        return self._floor

    def now(self) -> datetime:
        """The clock, but never before the floor."""
        return datetime.fromtimestamp(max(self._now(), self._floor), UTC)

    def check(self) -> None:
        """Raise `ClockBehindError` if the clock is below the floor."""
        now = self._now()
        if now + TOLERANCE_S < self._floor:
            raise ClockBehindError(
                f"the clock says {_text(now)}, but it was {_text(self._floor)} before: "
                "nothing is installed until the clock is set"
            )

    def prove(self, expires: datetime) -> None:
        """Raise the floor to now, after a refresh whose verified timestamp expires at `expires`."""
        proven = min(self._now(), expires.timestamp())
        if proven > self._floor + _STEP_S:
            self._floor = proven
            write_atomic(self._path, repr(proven).encode())


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
