"""When windows' verdicts open and close an alert: a small state machine with hysteresis. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgewise_server.drift.judge import WindowScore
from edgewise_server.drift.thresholds import DriftSettings

Change = Literal["open", "close", "worsen", "none"]


@dataclass(frozen=True, slots=True)
class Track:
    """Consecutive drifted and calm windows, and whether an alert is open."""

    bad: int = 0
    good: int = 0
    open: bool = False


def advance(track: Track, window: WindowScore, settings: DriftSettings) -> tuple[Track, Change]:
    """The next state, and what becomes of the alert.

    A window that was not judged changes nothing. One that is neither drifted nor calm breaks both rows, so
    that values near a threshold neither open nor close.
    """
    if not window.judged:
        return track, "none"
    if window.drifted:
        bad = track.bad + 1
        if track.open:
            return Track(bad, 0, True), "worsen" if window.severe else "none"
        opens = window.severe or bad >= settings.open_after
        return Track(bad, 0, opens), "open" if opens else "none"
    if not window.calm:
        return Track(0, 0, track.open), "none"
    good = track.good + 1
    if track.open and good >= settings.close_after:
        return Track(0, good, False), "close"
    return Track(0, good, track.open), "none"
