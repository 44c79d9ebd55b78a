"""The danger: the server's machine is lost, and with it the fleet: nobody can be told anything any more."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

AT_ONCE = ("--phase", "100")


@pytest.fixture(scope="module")
def fleet(empty_fleet: Any) -> Any:
    """Two running devices."""
    for name, board in (("hall", "raspberry-pi-4-64"), ("attic", "x86-64-vnni")):
        empty_fleet.start_device(empty_fleet.enrol(name, board))
    empty_fleet.edgewise("device", "wait", "hall", "attic", "--timeout", 90)
    return empty_fleet


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_server_comes_back_from_a_backup_that_was_made_while_it_ran(fleet: Any, bundles: Any) -> None:
    x = bundles.samples(4)

    def serve(version: int) -> bool:
        return all(device.serves("pump") == version for device in fleet.devices)

    fleet.publish("pump", 1, 2, 3)
    fleet.roll_out("pump", 1, *AT_ONCE)
    rollout = fleet.start_rollout("pump", 2, *AT_ONCE)
    archive = fleet.folder / "server.tar"
    said = fleet.command("edgewise-server", "backup", "--state", fleet.state, archive)
    digest = said.split("digest")[1].split()[0]
    fleet.watch_rollout(rollout)
    # what happens after the backup is lost with the server: versions go on, so that the backup's are old
    fleet.roll_out("pump", 1, *AT_ONCE)
    devices = {device.name: _accepted(device) for device in fleet.devices}

    fleet.server.kill()
    shutil.rmtree(fleet.state)
    said = fleet.command("edgewise-server", "restore", "--state", fleet.state, archive, "--digest", digest)
    assert "2 assignments" in said
    fleet.start_server()

    # the restored server knows of the rollout of version 2 that ran when the backup was made, and brings it to its end
    done = fleet.watch_rollout(rollout)
    assert done["status"] == "completed"
    fleet.wait_for("the devices follow the restored server", lambda: serve(2))
    for device in fleet.devices:
        assert _accepted(device) > devices[device.name] + 1_000, "the restored server's versions leap"
    fleet.roll_out("pump", 3)
    for device in fleet.devices:
        answered, logits = device.infer("pump", x)
        assert answered == 3
        assert abs(logits - bundles.logits_of("pump", 3, device.board, x)).max() < 1e-4
    # nothing was refused on the way: no device took the restored server for one that rolls back
    for device in fleet.devices:
        events = fleet.get(f"/devices/{device.name}/events", limit=200)["events"]
        assert [e for e in events if e["kind"] == "security"] == []


def _accepted(device: Any) -> int:
    """The newest assignment version that the device's disk knows."""
    return int(json.loads((device.state / "installed.json").read_bytes())["assignment_version"])
