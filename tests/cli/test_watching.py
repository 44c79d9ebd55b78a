"""Danger: somebody who watches a rollout sees it stand still, and cannot tell why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import typer
from edgewise_cli.times import span
from edgewise_cli.watching import waiting_for

NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)


def rollout(**values: Any) -> dict[str, Any]:
    counts = {"cohort": 2, "offline": 0, "unfit": 0, "barred": 0}
    found = {"status": "running", "phase": 0, "phases": [{"percent": 100}], "devices": [], "counts": counts}
    return found | values


def device(state: str = "pending", reported: str = "") -> dict[str, Any]:
    return {"device_id": "d", "state": state, "reported": reported}


def test_devices_are_counted_by_what_they_do() -> None:
    devices = [device(reported="probation"), device(reported="probation"), device(reported="downloading"), device()]
    text = waiting_for(rollout(devices=[*devices, device("committed")]))
    assert text.startswith("waiting for 4 device(s): ")
    assert "2 are on probation" in text and "1 download" in text and "1 have not said" in text


def test_a_soak_says_how_long_it_lasts() -> None:
    soaking = rollout(phases=[{"percent": 10, "soak_s": 90}], phase_started_at="2026-11-25T11:59:00Z")
    assert waiting_for(soaking, NOW) == "soaking: 30 s more before the next phase"
    assert waiting_for(soaking, NOW.replace(minute=5)) == ""


def test_a_fleet_that_cannot_take_the_version_is_said_to_be_waited_for() -> None:
    counts = {"cohort": 0, "offline": 3, "unfit": 1, "barred": 0}
    assert waiting_for(rollout(counts=counts)) == "waiting for a device that is online and fits (3 offline, 1 unfit)"


def test_a_rollout_whose_devices_went_to_a_newer_one_says_so() -> None:
    counts = {"cohort": 0, "exposed": 1, "offline": 0, "unfit": 0, "barred": 0}
    text = waiting_for(rollout(counts=counts, devices=[device("committed")]))
    assert "newer rollouts" in text and "rollout abort" in text and "online and fits" not in text


@pytest.mark.parametrize("status", ["completed", "aborted"])
def test_an_ended_rollout_waits_for_nothing(status: str) -> None:
    assert waiting_for(rollout(status=status, devices=[device()])) == ""


def test_a_paused_one_says_who_must_act() -> None:
    assert "rollout resume" in waiting_for(rollout(status="paused", reason="lunch"))


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1_800), ("2h", 7_200), ("7d", 604_800)])
def test_a_span_is_read_as_people_write_it(text: str, seconds: int) -> None:
    assert span(text) == seconds


@pytest.mark.parametrize("text", ["", "2weeks", "-1h", "1.5h", "59s", "0", "h"])
def test_a_span_that_cannot_be_meant_is_refused_with_examples(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"2h|less than a minute"):
        span(text)
