"""Danger: what a device asks for is lost with the broker or the server that was to answer, and it waits for ever.

Real agents, the real server and Mosquitto; the broker keeps nothing, so that its death takes sessions, queues and
every retained chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

MIB = 1 << 20


@pytest.fixture(scope="module")
def fleet(empty_fleet: Any) -> Iterator[Any]:
    device = empty_fleet.enrol("hall", "raspberry-pi-4-64")
    empty_fleet.start_device(device)
    empty_fleet.edgewise("device", "wait", "hall", "--timeout", 90)
    yield empty_fleet


def begin_download(fleet: Any, model: str) -> tuple[str, int]:
    """Start a rollout, and return in the middle of the device's download: the rollout and the bundle's size."""
    (device,) = fleet.devices
    made = fleet.publish(model, 1, padding=48 * MIB)
    size = made[device.board].stat().st_size
    rollout = fleet.start_rollout(model, 1, "--phase", "100")
    fleet.wait_for("the download begins", lambda: device.downloaded() > MIB, every_s=0.002)
    return rollout, size


def finish(fleet: Any, rollout: str, model: str) -> None:
    done = fleet.watch_rollout(rollout, timeout_s=90)
    assert done["status"] == "completed"
    assert fleet.devices[0].serves(model) == 1


@pytest.mark.slow
def test_a_download_through_a_broker_that_loses_everything_completes(fleet: Any) -> None:
    rollout, size = begin_download(fleet, "wiped")
    fleet.broker.process.kill()
    assert 0 < fleet.devices[0].downloaded() < size, "the download was over already"
    fleet.broker.start()
    finish(fleet, rollout, "wiped")


@pytest.mark.slow
def test_a_device_that_waits_for_a_dead_server_and_an_empty_broker_completes(fleet: Any) -> None:
    (device,) = fleet.devices
    rollout, size = begin_download(fleet, "alone")
    fleet.broker.process.kill()
    fleet.server.kill()
    assert 0 < device.downloaded() < size, "the download was over already"
    said = device.process.text.count("no answer to a request for retained messages")
    fleet.broker.start()
    fleet.wait_for(
        "the device asks in vain",
        lambda: device.process.text.count("no answer to a request for retained messages") > said,
        60,
    )
    fleet.start_server()
    finish(fleet, rollout, "alone")
