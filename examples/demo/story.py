"""The demo, step by step."""

from __future__ import annotations

from demo.steps import devices, drift, federation, model, rollouts, server
from demo.world import World


def tell(world: World) -> None:
    """Run every step.

    Raises:
        DemoError: one did not happen as it must.
    """
    step = world.narrator.step
    with step("A fleet server with its embedded MQTT broker"):
        server.start_server(world)
    with step("The key ceremony: root and release keys stay offline"):
        server.hold_ceremony(world)
    with step("Train on real digits"):
        model.train(world)
    with step("Convert for three boards"):
        model.convert(world)
    with step("Sign with an offline key, and publish"):
        model.release(world)
    with step("Enrol three devices"):
        devices.enrol(world)
    with step("A canary rollout over MQTT"):
        rollouts.roll_out(world, 1)
    with step("Real held-out digits through each device"):
        rollouts.ask_devices(world)
    with step("Corrupted images on one device"):
        devices.start_worker(world)
        drift.raise_alert(world)
    with step("A bad release"):
        rollouts.stop_bad_release(world, 2)
    with step("The devices learn together"):
        federation.learn(world)
    with step("What they learned comes back, signed and rolled out"):
        federation.receive(world)
