"""From real digits to signed bundles in the registry."""

from __future__ import annotations

from demo.world import CHANNEL, World

MIN_ACCURACY = 0.97


def train(world: World) -> None:
    """Train on real digits."""
    world.narrator.say("scikit-learn's 1,797 handwritten digits; a quarter is held out.")
    found = world.edgewise("train", world.config, "--out", world.run)
    accuracy = found["metrics"]["accuracy"]
    world.found["accuracy"] = accuracy
    for check in found["gate"]["checks"]:
        world.narrator.say(f"  gate: {check['name']} {check['value']:.4g} (bound {check['bound']:.4g})")
    world.narrator.verdict("test accuracy on real digits", f"{100 * accuracy:.2f} %", accuracy >= MIN_ACCURACY)


def convert(world: World) -> None:
    """Convert for the three boards, and build the training bundle."""
    profiles = [word for device in world.devices for word in ("-p", device.profile)]
    out = world.folder / "bundles"
    found = world.edgewise(
        "convert", world.run, "--version", 1, *profiles, "--precision", "default", "--training", "--out", out
    )
    bundles = found["bundles"]
    rows = []
    for b in bundles:
        points = 100 * (b["accuracy"] - b["accuracy_float"])
        rows.append(
            [
                b["profile"],
                b["engine"],
                f"{b['format']} {b['precision'].removeprefix(b['format'] + '-')}",
                f"{b['model_size_bytes'] / 1024:.1f} KiB",
                f"{100 * b['accuracy']:.2f} %",
                f"{points:+.2f}",
                f"{b['latency_ms']:.3f} ms" + ("" if b["latency_binding"] else " (on this host)"),
                "passed" if b["passed"] else "refused",
            ]
        )
    world.narrator.table(
        "Bundles",
        ["profile", "engine", "form", "model", "accuracy", "points to float", "latency", "verdict"],
        rows,
    )
    forms = {(b["format"], b["precision"].removeprefix(b["format"] + "-")) for b in bundles}
    both = {("tflite", "int8"), ("onnx", "int8")} <= forms
    world.narrator.verdict(
        "bundles for three profiles, among them TFLite int8 and ONNX int8",
        ", ".join(sorted(f"{f} {p}" for f, p in forms)),
        both and len(bundles) == 3 and all(b["passed"] for b in bundles),
    )


def release(world: World) -> None:
    """Sign with the offline keys, publish, verify what the server serves."""
    bundles = sorted((world.folder / "bundles").glob("*.ewb"))
    out = world.folder / "release-1"
    world.shown("edgewise", "sign", *bundles, "--channel", CHANNEL, "--keys", world.keys, "--out", out)
    world.shown("edgewise", "publish", out, "--keys", world.keys)
    found = world.edgewise("models", "digits", 1, show=False)
    signed = {b["profile"]: b["role"] for b in found["bundles"]}
    world.narrator.verdict(
        "three bundles signed by an offline key", f"{len(signed)} in the registry", set(signed.values()) == {"targets"}
    )
