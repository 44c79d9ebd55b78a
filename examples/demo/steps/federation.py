"""The devices learn from turned digits together, and what they learned is promoted and rolled out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo import data
from demo.inference import classify
from demo.steps.rollouts import check_serving
from demo.world import CHANNEL, GROUP, MODEL, World

ROUNDS, EPOCHS, RATE = 6, 1, 0.005
"""Chosen on a quarter of the training originals, never on the held-out digits: with label-split devices a larger
rate or more local epochs costs the base domain more than the gate allows."""
MIN_GAIN = 0.10


def learn(world: World) -> None:
    """Run the rounds; the result is promoted by the worker and rolled out by the server."""
    turned = data.turned(world.config)
    world.narrator.say("Digits turned by 15 to 35 degrees: to the base model they are drift, and score low.")
    world.found["before"] = _right(world, turned.x_test, turned.y_test)
    found = world.edgewise(
        *("federate", "start", MODEL, "--channel", CHANNEL, "--group", GROUP, "--training-version", 1),
        *("--base-version", 1, "--rounds", ROUNDS, "--epochs", EPOCHS, "--lr", RATE, "--min-clients", 3),
        *("--round-timeout", 60, "--phase", "34:1", "--phase", "100"),
    )
    world.shown("edgewise", "federate", "status", found["id"], "--watch", "--timeout", 150)
    done = world.get(f"/federations/{found['id']}")
    world.found["federation"] = done
    closed = [r for r in done["rounds"] if r["state"] == "closed"]
    clients = {c["device_id"] for r in closed for c in r["clients"] if c["state"] == "aggregated"}
    world.narrator.verdict(
        "federated rounds over the devices' own data",
        f"{len(closed)} rounds, {len(clients)} clients",
        len(closed) == ROUNDS and len(clients) == 3,
    )
    job = world.get(f"/jobs/{done['promote_job']}")
    _tell_gate(world, job)


def receive(world: World) -> None:
    """Wait for the rollout of the promoted version, and compare on the devices themselves."""
    done: dict[str, Any] = world.found["federation"]
    version = int(done["promoted_version"])
    world.processes.wait_for(
        lambda: bool(world.get(f"/federations/{done['id']}")["rollout_id"]), 30, "the rollout of the promoted version"
    )
    rollout = world.get(f"/federations/{done['id']}")["rollout_id"]
    world.shown("edgewise", "rollout", "status", rollout, "--watch", "--timeout", 90)
    bundles = world.edgewise("models", MODEL, version, show=False)["bundles"]
    roles = {b["role"] for b in bundles}
    world.narrator.verdict(
        f"version {version} is signed by the worker's role", ", ".join(sorted(roles)), roles == {f"auto/{CHANNEL}"}
    )
    check_serving(world, version)
    turned = data.turned(world.config)
    after = _right(world, turned.x_test, turned.y_test)
    _compare_on_devices(world, world.found["before"], after)


def _right(world: World, x: NDArray[np.float32], y: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    return {d.name: classify(d, x)[0] == y for d in world.devices}


def _tell_gate(world: World, job: dict[str, Any]) -> None:
    result = job["result"] or {}
    report = result.get("report", {})
    metrics, gate = report.get("metrics", {}), report.get("gate", {})
    for check in gate.get("checks", []):
        world.narrator.say(
            f"  gate: {check['name']} {check['value']:.4g} (bound {check['bound']:.4g}) "
            + ("passed" if check["passed"] else "missed")
        )
    for name in sorted(metrics):
        world.narrator.say(f"  {name}: {metrics[name]:.4g}")
    world.narrator.verdict(
        "the aggregate passed the gate and was converted",
        f"version {result.get('version')}, {len(report.get('bundles', []))} bundles",
        bool(result.get("passed")),
    )


def _compare_on_devices(
    world: World, before: dict[str, NDArray[np.bool_]], after: dict[str, NDArray[np.bool_]]
) -> None:
    from edgewise_trainer.comparison import compare

    rows, gains, ps = [], [], []
    for name, old in before.items():
        pair = compare(old, after[name])
        gains.append(pair.gain)
        ps.append(pair.p_value)
        rows.append(
            [
                name,
                f"{100 * old.mean():.2f} %",
                f"{100 * after[name].mean():.2f} %",
                str(pair.both_right),
                str(pair.only_old),
                str(pair.only_new),
                str(pair.both_wrong),
                f"{pair.p_value:.1e}",
            ]
        )
    world.narrator.table(
        "Held-out turned digits through the devices, the same images before and after",
        ["device", "before", "after", "both right", "only before", "only after", "both wrong", "exact McNemar p"],
        rows,
    )
    world.narrator.verdict(
        "what the fleet learned raises accuracy on held-out turned digits",
        f"{100 * min(gains):+.1f} to {100 * max(gains):+.1f} points, p at most {max(ps):.1e}",
        min(gains) >= MIN_GAIN and max(ps) < 0.001,
    )
