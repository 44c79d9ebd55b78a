"""The danger: an agent that the fleet cannot replace, or whose replacement takes the device away from the fleet.

The whole way, as an operator goes it: wheels, `agent-bundle`, `sign`, `publish`, `rollout start`; the server's minimum.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

AT_ONCE = ("--phase", "100")
CONFIRM = ("--confirm-within", 180)


def _agents() -> Any:
    name = "selfupdate_agents"
    if name not in sys.modules:
        path = Path(__file__).resolve().parents[1] / "agent" / "selfupdate" / "agents.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def versions(fleet: Any) -> dict[str, str]:
    return {device["id"]: device["agent_version"] for device in fleet.edgewise("device", "list")["devices"]}


def publish_agent(fleet: Any, wheels: list[Path], name: str) -> int:
    made = fleet.edgewise("agent-bundle", *wheels, "--out", fleet.folder / f"{name}.ewb")
    fleet.release(name, [fleet.folder / f"{name}.ewb"])
    return int(made["version"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fleet_replaces_its_agents(empty_fleet: Any, fleets: Any, processes: Any, tmp_path: Path) -> None:
    fleet, agents = empty_fleet, _agents()
    for name, board in (("hall", "raspberry-pi-4-64"), ("attic", "x86-64-vnni")):
        device = fleet.enrol(name, board)
        command = [sys.executable, "-m", "edgewise_agent.launcher", "run", "--state", str(device.state)]
        env = {**fleet.env, **fleets.QUICK_AGENT}
        del env["EDGEWISE_TOKEN"]
        device.process = processes.Process(name, command, env, fleet.folder / f"{name}.log")
        fleet.start_device(device, agent_confirm_s=60)
    fleet.edgewise("device", "wait", "hall", "attic", "--timeout", 90)
    fleet.publish("pump", 1, 2)
    fleet.roll_out("pump", 1, *AT_ONCE)

    fleet.server.stop()
    fleet.env["EDGEWISE_SERVER_MINIMUM_AGENT_VERSION"] = "0.2.0"
    fleet.start_server()
    assert {d["agent_too_old"] for d in fleet.edgewise("device", "list")["devices"]} == {True}
    waiting = fleet.start_rollout("pump", 2, *AT_ONCE)
    found = fleet.wait_for(
        "the devices are online again",
        lambda: (r := fleet.rollout(waiting)) and r["counts"]["barred"] == 2 and r,
    )
    assert {(d["device_id"], d["reason"]) for d in found["barred"]} == {
        ("hall", "agent-too-old"),
        ("attic", "agent-too-old"),
    }
    assert found["counts"]["exposed"] == 0

    wheels = agents.build_wheels(tmp_path / "wheels", "0.2.0")
    number = publish_agent(fleet, wheels, "agent-0.2.0")
    update = fleet.start_rollout("edgewise-agent", number, *AT_ONCE, *CONFIRM)
    done = fleet.watch_rollout(update, timeout_s=100)
    assert done["status"] == "completed" and done["counts"]["committed"] == 2
    assert versions(fleet) == {"hall": "0.2.0", "attic": "0.2.0"}
    assert fleet.watch_rollout(waiting)["counts"]["committed"] == 2

    broken = agents.renamed(wheels, tmp_path / "broken", "0.2.1", {agents.RUN: agents.CRASHES})
    bad = fleet.start_rollout(
        "edgewise-agent", publish_agent(fleet, broken, "agent-0.2.1"), "--phase", "50:1", "--phase", "100", *CONFIRM
    )
    gone = fleet.watch_rollout(bad, expect=1, timeout_s=100)
    assert gone["status"] == "aborted"
    gone = fleet.wait_for("the revert", lambda: (r := fleet.rollout(bad))["counts"]["reverted"] == 1 and r)
    assert [(d["error_code"], d["state"]) for d in gone["devices"]] == [("agent-boot-loop", "reverted")]
    fleet.wait_for("both are online", lambda: all(d["online"] for d in fleet.edgewise("device", "list")["devices"]))
    assert versions(fleet) == {"hall": "0.2.0", "attic": "0.2.0"}
    assert [device.serves("pump") for device in fleet.devices] == [2, 2]
