"""The danger: power cuts. A server, an agent or a broker that dies at a bad moment leaves a fleet stuck, or wrong."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

MIB = 1 << 20
AT_ONCE = ("--phase", "100")
NEVER_S = 3600
"""A probation that only requests can end."""


@pytest.fixture(scope="module")
def fleet(empty_fleet: Any) -> Iterator[Any]:
    """Two running devices; each is also alone in a group of its own name."""
    for name, board in (("hall", "raspberry-pi-4-64"), ("attic", "x86-64-vnni")):
        device = empty_fleet.enrol(name, board)
        empty_fleet.start_device(device)
    empty_fleet.edgewise("device", "wait", "hall", "attic", "--timeout", 90)
    empty_fleet.edgewise("group", "create", "attic")
    empty_fleet.edgewise("group", "add", "attic", "attic")
    yield empty_fleet


def check_answers(fleet: Any, bundles: Any, model: str, version: int, devices: Any = None) -> None:
    x = bundles.samples(5)
    for device in devices or fleet.devices:
        answered, logits = device.infer(model, x)
        assert answered == version, device.name
        assert abs(logits - bundles.logits_of(model, version, device.board, x)).max() < 1e-4


def test_a_server_that_is_killed_in_a_rollout_carries_it_on(fleet: Any, bundles: Any) -> None:
    fleet.publish("pump", 1, 2)
    fleet.roll_out("pump", 1, *AT_ONCE)
    for device in fleet.devices:
        _restart(fleet, device, probation__seconds=NEVER_S)
    rollout = fleet.start_rollout("pump", 2)
    canary = fleet.canary(rollout)
    other = next(device for device in fleet.devices if device is not canary)
    fleet.wait_for("the canary has its assignment", lambda: _target(canary, "pump") == 2, every_s=0.01)
    fleet.server.kill()
    assert not _is(canary, "pump", 2, "committed")
    # The broker holds all that the canary needs; what it tells meanwhile waits there, and on its own disk.
    _use(fleet, bundles, canary, "pump", 2)
    fleet.wait_for("the canary commits without a server", lambda: _is(canary, "pump", 2, "committed"))
    assert (canary.serves("pump"), other.serves("pump")) == (2, 1)

    fleet.start_server()
    fleet.wait_for("the other device's turn", lambda: fleet.rollout(rollout)["counts"]["exposed"] == 2, every_s=0.01)
    fleet.server.kill()  # the assignment is decided; whether it was published, nobody knows
    fleet.start_server()
    _use(fleet, bundles, other, "pump", 2)
    done = fleet.watch_rollout(rollout)
    assert done["status"] == "completed" and done["counts"]["committed"] == 2
    assert [d["device_id"] for d in done["devices"]] == [canary.name, other.name]
    assert [step["kind"] for step in done["history"]].count("assign") == 2
    check_answers(fleet, bundles, "pump", 2)
    for device in fleet.devices:
        fleet.wait_for(f"{device.name}'s events", lambda name=device.name: "committed" in _told(fleet, name, "pump", 2))
        assert _told(fleet, device.name, "pump", 2).count("committed") == 1
        _restart(fleet, device)


@pytest.mark.parametrize("moment", ["downloading", pytest.param("self_test", marks=pytest.mark.slow), "probation"])
def test_an_agent_that_is_killed_ends_with_the_right_version(fleet: Any, bundles: Any, moment: str) -> None:
    device, model = fleet.device("attic"), f"dies-{moment.replace('_', '-')}"
    made = fleet.publish(model, 1, 2, padding={"downloading": 64 * MIB, "self_test": 64 * MIB}.get(moment, 0))
    size = made[device.board].stat().st_size
    fleet.roll_out(model, 1, *AT_ONCE, group=device.name)
    if moment == "probation":
        _restart(fleet, device, probation__seconds=NEVER_S)
    with ThreadPoolExecutor() as pool:
        # The moment may be over before the operator's command has ended.
        command = pool.submit(fleet.start_rollout, model, 2, *AT_ONCE, group=device.name)
        fleet.wait_for(f"{moment} begins", lambda: _in_the_midst(device, model, moment), every_s=0.002)
        device.process.kill()
        rollout = command.result()
    left = device.installed(model)
    assert left["state"] == moment and _target(device, model) == 2
    assert left["active"]["version"] == (2 if moment == "probation" else 1)
    if moment == "downloading":
        assert 0 < device.downloaded() < size

    fleet.start_device(device, **({"probation__seconds": NEVER_S} if moment == "probation" else {}))
    if moment == "probation":
        fleet.edgewise("device", "wait", device.name)
        assert fleet.rollout(rollout)["counts"]["committed"] == 0
        _use(fleet, bundles, device, model, 2)
    done = fleet.watch_rollout(rollout)
    assert done["status"] == "completed" and [d["state"] for d in done["devices"]] == ["committed"]
    assert _is(device, model, 2, "committed")
    check_answers(fleet, bundles, model, 2, [device])
    if moment == "downloading":
        assert "a download is resumed" in device.process.text
    if moment == "probation":
        _restart(fleet, device)


def test_a_broker_that_comes_back_empty_is_filled_again(fleet: Any, bundles: Any) -> None:
    fleet.publish("bell", 1, 2)
    fleet.roll_out("bell", 1, *AT_ONCE)
    fleet.broker.process.kill()
    fleet.broker.start()
    done = fleet.roll_out("bell", 2)
    assert done["counts"]["committed"] == 2
    check_answers(fleet, bundles, "bell", 2)


def _use(fleet: Any, bundles: Any, device: Any, model: str, version: int) -> None:
    """As many requests as end a probation, once the version serves."""
    fleet.wait_for(f"version {version} serves", lambda: device.serves(model) == version)
    for _ in range(20):
        device.infer(model, bundles.samples(1))


def _restart(fleet: Any, device: Any, **settings: object) -> None:
    """Stop an agent in order, and start it with other settings."""
    assert device.process.stop() == 0
    fleet.start_device(device, **settings)


def _is(device: Any, model: str, version: int, state: str) -> bool:
    """Whether the device's disk says that it is so."""
    found = device.installed(model)
    return bool(found) and found["state"] == state and (found["active"] or {}).get("version") == version


def _target(device: Any, model: str) -> int:
    """The version that the device was last assigned, by its disk."""
    found = device.installed(model)
    return int(found["target"]["custom"].get("version", 1)) if found else 0


def _told(fleet: Any, name: str, model: str, version: int) -> list[str]:
    """The states of a deployment of which the server has events."""
    events = fleet.get(f"/devices/{name}/events", limit=200)["events"]
    return [
        e["data"]["state"] for e in events if (e["data"].get("model"), e["data"].get("version")) == (model, version)
    ]


def _in_the_midst(device: Any, model: str, moment: str) -> bool:
    if device.installed(model).get("state") != moment or _target(device, model) != 2:
        return False
    return moment != "downloading" or device.downloaded() > MIB
