"""Three agents, each a process of its own that stands in for a board."""

from __future__ import annotations

import httpx

from demo.data import write_parts
from demo.world import CHANNEL, GROUP, World

AGENT = {
    "EDGEWISE_AGENT_TELEMETRY_INTERVAL_S": "2",
    "EDGEWISE_AGENT_DRIFT_WINDOW_SAMPLES": "150",
    "EDGEWISE_AGENT_PROBATION__MIN_INFERENCES": "20",
    "EDGEWISE_AGENT_PROBATION__SECONDS": "2",
    "EDGEWISE_AGENT_RECONNECT_MIN_S": "0.2",
    "EDGEWISE_AGENT_LOG_LEVEL": "info",
}
"""Shorter waits than in a real fleet: the demo has minutes, not days."""


def enrol(world: World) -> None:
    """Enrol and start the agents."""
    names = [d.name for d in world.devices]
    labels = write_parts(world.config, world.folder / "device-data", names)
    world.shown("edgewise", "group", "create", GROUP)
    for device in world.devices:
        file = world.folder / f"{device.name}.enrol.json"
        state = world.folder / "devices" / device.name
        enrolment = ("--channel", CHANNEL, "--group", GROUP, "--name", device.name, "--keys", world.keys, "--out", file)
        world.edgewise("device", "enrol-file", *enrolment)
        world.shown("edgewise-agent", "enrol", file, "--state", state, "--simulated-board", device.profile)
        data = world.folder / "device-data" / f"{device.name}.safetensors"
        world.start(
            device.name,
            *("edgewise-agent", "run", "--state", state, "--http-port", device.port, "--train-data", data),
            env=AGENT,
        )
        world.narrator.say(f"  {device.name} keeps turned digits of the labels {labels[device.name]} to itself")
    world.shown("edgewise", "device", "wait", *names, "--timeout", 40)
    world.processes.wait_for(lambda: all(_live(d.url) for d in world.devices), 30, "the agents' endpoints")
    world.shown("edgewise", "device", "list")
    online = [d for d in world.edgewise("device", "list", show=False)["devices"] if d["online"]]
    boards = {board for d in online for board in d["compatible"]}
    simulated = all(d["simulated"] for d in online)
    world.narrator.verdict(
        "three agents with different boards are enrolled, labelled simulated",
        ", ".join(sorted(boards)),
        len(online) == 3 and {d.profile for d in world.devices} <= boards and simulated,
    )


def start_worker(world: World) -> None:
    """Start the worker: its own keys, its own token, no key of anybody else."""
    made = world.edgewise("token", "create", "worker", "--role", "worker")
    world.start(
        "worker",
        *("edgewise", "worker", "run", "--keys", world.keys / "worker", "--config", world.config),
        *("--run", world.run, "--out", world.folder / "promotions", "--poll", 0.3),
        env={"EDGEWISE_TOKEN": made["token"]},
    )


def _live(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/live", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
