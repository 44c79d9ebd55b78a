"""Guards against a board that wakes up in the past and takes expired metadata for fresh, and against one that
a clock once ahead has locked out."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from edgewise_agent.errors import ClockBehindError, StateError
from edgewise_agent.trust.clock import TOLERANCE_S, ClockFloor


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_the_floor_is_the_certificate_at_first(tmp_path: Path) -> None:
    floor = ClockFloor(tmp_path / "clock", not_before=1_000_000.0, now=lambda: 5.0)
    with pytest.raises(ClockBehindError, match="nothing is installed"):
        floor.check()
    assert floor.now() == at(1_000_000.0)


def test_the_floor_survives_a_restart_and_only_rises(tmp_path: Path) -> None:
    floor = ClockFloor(tmp_path / "clock", now=lambda: 2_000_000.0)
    floor.prove(at(2_500_000.0))
    again = ClockFloor(tmp_path / "clock", now=lambda: 1_900_000.0)
    assert again.floor == 2_000_000.0
    with pytest.raises(ClockBehindError):
        again.check()
    again.prove(at(2_500_000.0))
    assert again.floor == 2_000_000.0


def test_a_clock_that_is_set_back_a_little_is_no_offence(tmp_path: Path) -> None:
    now = [2_000_000.0]
    floor = ClockFloor(tmp_path / "clock", now=lambda: now[0])
    floor.prove(at(2_500_000.0))
    now[0] -= TOLERANCE_S - 1
    floor.check()


def test_a_clock_far_ahead_raises_the_floor_no_further_than_the_timestamp_lives(tmp_path: Path) -> None:
    floor = ClockFloor(tmp_path / "clock", now=lambda: 9_000_000.0)
    floor.prove(at(2_086_400.0))
    assert floor.floor == 2_086_400.0


def test_a_damaged_floor_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("yesterday")
    with pytest.raises(StateError):
        ClockFloor(tmp_path / "clock")
