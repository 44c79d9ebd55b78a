"""A floor under the clock, for boards that wake up in the past.

The floor is the newest time that verified documents prove to be past: the start of the
device certificate, and the moment of each successful refresh, which the expiry of the
verified timestamp bounds from above, so that a clock that was once ahead cannot lock the
device for longer than a timestamp lives. Below the floor the device serves, and installs nothing.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgewise_agent.errors import ClockBehindError, StorageError
from edgewise_agent.twin import TwinFile

log = logging.getLogger(__name__)

TOLERANCE_S: Final = 120.0
"""A clock may be set back by this much, as time synchronisation does."""
_STEP_S: Final = 60.0
"""The floor is written again when it has risen by this much."""
_MAX_BYTES: Final = 512
_MAX_FLOOR: Final = 253_402_300_800.0
"""The year 10000, which `datetime` cannot say."""
_MAX_TIMESTAMP: Final = 64 * 1024


class ClockFloor:
    """A floor kept in a file, twice. When both copies are damaged, `witness` says what is known besides.

    Args:
        path: the file.
        not_before: start of the device certificate's validity, epoch seconds.
        now: the system clock.
        witness: another time that is surely past, epoch seconds; asked when the floor is lost.
    """

    def __init__(
        self,
        path: Path,
        not_before: float = 0.0,
        now: Callable[[], float] = time.time,
        witness: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._file = TwinFile(path, _MAX_BYTES)
        self._now = now
        kept, self.problem = self._file.read(_parse)
        if kept is None and self.problem:
            kept = witness()
            self.problem += f"; the floor is taken from what is left: {_text(max(not_before, kept))}"
        self._floor = max(not_before, kept or 0.0)
        if self.problem:
            self._mend()

    def _mend(self) -> None:
        try:
            self._file.set_aside(_parse)
            self._file.write(_document(self._floor))
        except StorageError as error:
            # The floor holds for this process, and is lost no more than before.
            log.error("the clock's floor cannot be written", extra={"reason": str(error)})

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
            self._file.write(_document(proven))
            self._floor = proven


def kept_floor(path: Path) -> tuple[float, str]:
    """The floor as it is on the disk, and what is wrong with it; 0 where there is none. Changes nothing."""
    kept, problem = TwinFile(path, _MAX_BYTES).read(_parse)
    return kept or 0.0, problem


def last_refresh(folder: Path) -> float:
    """When the metadata in a folder were last refreshed, epoch seconds; 0 where nothing tells.

    It is when the timestamp was written, and no later than its expiry: the same as the floor
    proves, though the file's own time is all that vouches for it.
    """
    path = folder / "timestamp.json"
    try:
        with path.open("rb") as file:
            expires = str(json.loads(file.read(_MAX_TIMESTAMP))["signed"]["expires"])
        return min(path.stat().st_mtime, datetime.fromisoformat(expires).timestamp())
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0


def _document(floor: float) -> bytes:
    return json.dumps({"floor": floor}).encode()


def _parse(data: bytes) -> float:
    found = json.loads(data)
    # Older agents wrote the bare number.
    floor = found.get("floor") if isinstance(found, dict) else found
    if not isinstance(floor, int | float) or not math.isfinite(floor) or not 0 <= floor < _MAX_FLOOR:
        raise ValueError("it holds no time")
    return float(floor)


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
