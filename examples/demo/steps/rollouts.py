"""A canary rollout that reaches all, what the devices then answer, and a bad release that stops at the canary."""

from __future__ import annotations

from contextlib import ExitStack

from demo import bad_release, data
from demo.inference import Hammer, classify
from demo.world import CHANNEL, GROUP, MODEL, World

PHASES = ("--phase", "34:1", "--phase", "100")


def roll_out(world: World, version: int) -> None:
    """Roll a good version out, canary first."""
    world.shown(
        *("edgewise", "rollout", "start", MODEL, version, "--group", GROUP, *PHASES, "--watch", "--timeout", 90)
    )
    check_serving(world, version)


def check_serving(world: World, version: int) -> None:
    """Check that every device serves `version`, by the server's view."""
    serving = serving_versions(world)
    world.narrator.verdict(
        f"version {version} serves on all three devices",
        ", ".join(f"{name} {v}" for name, v in serving.items()),
        set(serving.values()) == {version},
    )


def serving_versions(world: World) -> dict[str, int]:
    """The version that each device reports as serving."""
    found = world.get("/devices", group=GROUP, limit=10)["items"]
    return {d["id"]: max((m["active_version"] for m in d["models"]), default=0) for d in found}


def ask_devices(world: World) -> None:
    """Send held-out digits through each device's endpoint."""
    digits = data.base(world.config)
    base = world.found["accuracy"]
    rows, worst = [], 0.0
    for device in world.devices:
        classes, versions = classify(device, digits.x_test)
        accuracy = float((classes == digits.y_test).mean())
        worst = max(worst, abs(accuracy - base))
        rows.append(
            [
                device.name,
                device.url,
                ", ".join(sorted(versions)),
                f"{100 * accuracy:.2f} %",
                f"{100 * (accuracy - base):+.2f}",
            ]
        )
    world.narrator.table(
        f"{len(digits.y_test)} held-out digits over the Open Inference Protocol (float model: {100 * base:.2f} %)",
        ["device", "endpoint", "version", "accuracy", "points to float"],
        rows,
    )
    world.narrator.verdict("devices are within 1 point of the float model", f"{100 * worst:.2f} points", worst <= 0.01)


def stop_bad_release(world: World, version: int) -> None:
    """Roll out a release whose self-test must fail, while clients go on asking."""
    good = version - 1
    bundles = bad_release.make(world.folder / "bundles", world.folder / "bad", version)
    world.narrator.say(f"Version {version} is signed properly, but its golden outputs are not its model's.")
    out = world.folder / f"release-{version}"
    world.shown("edgewise", "sign", *bundles, "--channel", CHANNEL, "--keys", world.keys, "--out", out)
    world.shown("edgewise", "publish", out, "--keys", world.keys)
    x = data.base(world.config).x_test
    with ExitStack() as stack:
        hammers = [stack.enter_context(Hammer(d, x)) for d in world.devices]
        world.shown(
            *("edgewise", "rollout", "start", MODEL, version, "--group", GROUP, *PHASES, "--watch", "--timeout", 90),
            expect=1,
        )
        world.processes.wait_for(
            lambda: set(serving_versions(world).values()) == {good}, 20, f"version {good} serving everywhere"
        )
    found = world.get("/rollouts", model=MODEL)["rollouts"]
    rollout = world.get(f"/rollouts/{next(r['id'] for r in found if r['version'] == version)}")
    exposed = [d for d in rollout["devices"] if d["exposed_at"]]
    canary = exposed[0]["device_id"] if exposed else "none"
    world.narrator.verdict(
        "the bad release stopped at the canary",
        f"{rollout['status']}, {len(exposed)} of {rollout['counts']['cohort']} exposed ({canary}): {rollout['reason']}",
        rollout["status"] == "aborted" and len(exposed) == 1,
    )
    answered = sum(h.answered for h in hammers)
    failures = [f for h in hammers for f in h.failures]
    versions = {v for h in hammers for v in h.versions}
    world.narrator.verdict(
        f"version {good} went on serving, with no failed request",
        f"{answered} answered by version {', '.join(sorted(versions))}, {len(failures)} failed"
        + (f": {failures[0]}" if failures else ""),
        answered > 0 and all(h.answered for h in hammers) and not failures and versions == {str(good)},
    )
