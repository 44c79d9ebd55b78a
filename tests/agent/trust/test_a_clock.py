"""Guards against a board that wakes up in the past and takes expired metadata for fresh, and against one that
a clock once ahead has locked out."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from edgewise_agent.errors import ClockBehindError
from edgewise_agent.trust.clock import TOLERANCE_S, ClockFloor, last_refresh


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


def test_a_damaged_floor_comes_from_its_other_copy(tmp_path: Path) -> None:
    ClockFloor(tmp_path / "clock", now=lambda: 2_000_000.0).prove(at(2_500_000.0))
    data = bytearray((tmp_path / "clock").read_bytes())
    data[-4] ^= 1  # A digit of the floor: what is left is JSON, and another time.
    (tmp_path / "clock").write_bytes(data)
    floor = ClockFloor(tmp_path / "clock")
    assert floor.floor == 2_000_000.0 and "damaged" in floor.problem
    assert list(tmp_path.glob("clock.damaged-*"))
    assert ClockFloor(tmp_path / "clock").problem == ""


def test_a_floor_whose_copies_are_both_damaged_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("yesterday")
    (tmp_path / "clock.copy").write_text("tomorrow")
    timestamp = tmp_path / "timestamp.json"
    timestamp.write_text('{"signed": {"expires": "1970-02-01T00:00:00Z"}}')
    os.utime(timestamp, (2_000_000.0, 2_000_000.0))
    floor = ClockFloor(tmp_path / "clock", now=lambda: 5.0, witness=lambda: last_refresh(tmp_path))
    assert floor.floor == 2_000_000.0 and "taken from what is left" in floor.problem
    with pytest.raises(ClockBehindError):
        floor.check()
    os.utime(timestamp, (9_000_000.0, 9_000_000.0))
    assert last_refresh(tmp_path) == 31 * 86400, "the expiry bounds what a file's time can claim"
