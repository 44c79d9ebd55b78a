"""Corrupted images on one device: an alert there, and nowhere else."""

from __future__ import annotations

import numpy as np
from edgewise_trainer.datasets import corrupt

from demo import data
from demo.inference import classify
from demo.world import Device, World

SEVERITY = 0.8
MIN_WINDOWS = 8
"""Of 150 samples: three times the 450 held-out digits, but for a last one that may still be open."""


def raise_alert(world: World) -> None:
    """Send corrupted images to one device and clean ones to the others, until the alert is there."""
    victim = world.devices[1]
    clean = data.base(world.config).x_test
    damaged = corrupt(clean, SEVERITY, seed=11, value_range=(0.0, 16.0))
    world.narrator.say(f"{victim.name} gets corrupted images, the others clean ones: {len(clean)} each, twice.")
    for _ in range(2):
        for device in world.devices:
            _send(device, damaged if device is victim else clean)
    world.processes.wait_for(
        lambda: _windows_of(world, {d.name for d in world.devices}), 30, "drift windows of all devices"
    )
    world.processes.wait_for(lambda: victim.name in _alerted(world), 30, f"a drift alert on {victim.name}")
    world.shown("edgewise", "drift", "--limit", 6)
    world.shown("edgewise", "alerts")
    alerted = _alerted(world)
    world.narrator.verdict(
        "a drift alert on the device with corrupted images, and on no other",
        ", ".join(sorted(alerted)),
        alerted == {victim.name},
    )


def _send(device: Device, x: np.ndarray) -> None:
    classify(device, x, batch=25)


def _windows_of(world: World, names: set[str]) -> bool:
    windows = world.get("/drift", limit=200)["windows"]
    return all(sum(w["device_id"] == name for w in windows) >= MIN_WINDOWS for name in names)


def _alerted(world: World) -> set[str]:
    return {a["device_id"] for a in world.get("/alerts", open="true")["alerts"] if a["kind"] == "drift"}
