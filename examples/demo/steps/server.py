"""The server with its embedded broker, and the ceremony of the offline keys."""

from __future__ import annotations

import httpx

from demo.world import CHANNEL, World


def start_server(world: World) -> None:
    """Start the server."""
    state = world.folder / "server"
    world.shown("edgewise-server", "init", "--state", state)
    world.start("server", "edgewise-server", "run", "--state", state)

    def healthy() -> bool:
        try:
            return httpx.get(f"{world.server_url}/api/v1/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    world.processes.wait_for(healthy, 40, "the server's health")
    world.found["token"] = (state / "admin.token").read_text().strip()
    world.env["EDGEWISE_SERVER"] = world.server_url
    world.env["EDGEWISE_TOKEN"] = world.found["token"]
    world.narrator.say(f"The server answers at {world.server_url}; its embedded broker listens on loopback.")


def hold_ceremony(world: World) -> None:
    """Make the offline keys, and install what they signed."""
    online = world.folder / "server" / "online.json"
    world.shown("edgewise", "keys", "init", world.keys, "--online", online, "--channel", f"{CHANNEL}:auto")
    world.shown("edgewise", "trust", "install", world.keys)
