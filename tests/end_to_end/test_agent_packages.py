"""Danger: a package that installs where it was made, and not on the board: another processor, no network, no pip.

The archive of `edgewise agent-package` alone is put onto an emulated board. It is installed without a network,
enrolled with a real server, and serves a model that reached it over MQTT.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from edgewise_profiles import catalogue

STATE = "/var/lib/edgewise-agent"
AGENT = "/opt/edgewise-agent/current/bin/edgewise-agent"
BOOT_S, ROLLOUT_S = 240, 420
ROUNDING_STEPS = 4.01
"""Of 256 that an output has; seen was at most 1 with the same LiteRT, and 3 with tflite-runtime 2.14."""
SLOW = {
    "EDGEWISE_AGENT_HTTP_PORT": "0",
    "EDGEWISE_AGENT_TELEMETRY_INTERVAL_S": "5",
    "EDGEWISE_AGENT_PROBATION__SECONDS": "1",
    "EDGEWISE_AGENT_FETCH_TIMEOUT_S": "120",
    "EDGEWISE_AGENT_RESEND_S": "60",
    "EDGEWISE_AGENT_MIN_FREE_MIB": "1",
    "EDGEWISE_AGENT_SELF_TEST__TIMEOUT_S": "300",
    "EDGEWISE_AGENT_SELF_TEST__CPU_S": "300",
    "EDGEWISE_AGENT_WATCHDOG__EVENT_LOOP_S": "300",
}
"""Emulation is about a hundred times slower than the board."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def _load(name: str, path: Path) -> Any:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def boards() -> Any:
    """The module `boards`."""
    return _load("end_to_end_boards", Path(__file__).with_name("boards.py"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A full int8 TFLite file, a sample of its inputs, and what LiteRT answers here: x, y and the step of y."""
    from ai_edge_litert.interpreter import Interpreter

    folder = tmp_path_factory.mktemp("model")
    path = folder / "spotter.tflite"
    real = Path(os.environ.get("EDGEWISE_MODELS", "")) / "mlperf_tiny/kws_ref_model.tflite"
    shutil.copy(real if real.is_file() else _linear(folder), path)
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (takes,), (gives,) = interpreter.get_input_details(), interpreter.get_output_details()
    integers = np.random.default_rng(5).integers(-128, 128, (48, *takes["shape"][1:]), np.int8)
    answers = []
    for row in integers:
        interpreter.set_tensor(takes["index"], row[np.newaxis])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(gives["index"])[0].copy())
    (sx, zx), (sy, zy) = takes["quantization"], gives["quantization"]
    x = (integers.astype(np.float32) - zx) * np.float32(sx)
    sample = folder / "sample.npz"
    np.savez(sample, x=x)
    return path, sample, (x, (np.stack(answers).astype(np.float32) - zy) * np.float32(sy), sy)


def _linear(folder: Path) -> Path:
    """Where no real model is at hand: three sums of four inputs, all in int8."""
    files = _load("agent_engine_files", Path(__file__).parents[1] / "agent/engines/conftest.py").ModelFiles(folder)
    w = np.array([[64, -128, 0, 127], [50, 50, 50, 50], [-30, 0, 90, 0]], np.int8)
    made: Path = files.tflite_linear(
        w, np.array([9, -4, 0], np.int32), dtype=np.int8, scales=((0.05, -20), (2 / 127, 0), (0.1, -20))
    )
    return made


def _package(edgewise: str, profile_id: str, engine: str, out: Path) -> Path:
    """The archive that the command makes."""
    done = subprocess.run(
        [edgewise, "agent-package", "-p", profile_id, "--engine", engine, "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(json.loads(done.stdout)["packages"][0]["file"])


@pytest.mark.parametrize(
    ("profile_id", "machine", "engine"),
    [("raspberry-pi-4-64", "aarch64", "litert"), ("raspberry-pi-32", "armv7l", "tflite-runtime")],
)
def test_the_archive_alone_makes_a_board_that_serves(
    profile_id: str,
    machine: str,
    engine: str,
    tmp_path: Path,
    empty_fleet: Any,
    fleets: Any,
    processes: Any,
    boards: Any,
    model: tuple[Path, Path, Any],
) -> None:
    profile = catalogue.load(profile_id)
    if reason := boards.why_not(profile):
        pytest.skip(reason)
    fleet, (path, sample, (x, y, step)) = empty_fleet, model
    archive = _package(processes.program("edgewise"), profile_id, engine, tmp_path / "packages")
    board = boards.Board(profile, tmp_path)
    shutil.copy(archive, board.root / "root")
    folder = f"/root/{archive.name.removesuffix('.tar.gz')}"

    # Installed without a network, and only once.
    board.run("tar", "-xzf", f"/root/{archive.name}", "-C", "/root")
    said = board.run("sh", f"{folder}/install.sh", "--no-compile")
    assert f"engines: {engine} " in said and "making the user edgewise-agent" in said
    assert "installed in /opt/edgewise-agent" in board.run("sh", f"{folder}/install.sh", "--no-compile")
    unit = (board.root / "etc/systemd/system/edgewise-agent.service").read_text()
    assert f"ExecStart={AGENT}-launcher run --state {STATE}\n" in unit

    # Enrolled as the user that the service runs as.
    name = f"{profile_id}-1"
    file = tmp_path / "enrol.json"
    fleet.edgewise("group", "create", profile_id)
    options = ("--channel", fleet.channel, "--group", profile_id, "--name", name, "--keys", fleet.keys, "--out", file)
    fleet.edgewise("device", "enrol-file", *options)
    shutil.copy(file, board.root / "enrol.json")
    (board.root / "enrol.json").chmod(0o644)
    said = board.run(
        *(AGENT, "enrol", "/enrol.json", "--state", STATE, "--simulated-board", profile_id),
        network=True,
        user="edgewise-agent",
    )
    assert f"enrolled as {name}" in said
    shown = fleet.get(f"/devices/{name}")
    facts = shown.get("facts", shown)
    assert (facts["machine"], list(facts["engines"])) == (machine, [engine])
    assert set(profile.cpu.features) <= set(facts["cpu_features"])

    # It serves what a rollout brings it over MQTT.
    words = [f"{AGENT}-launcher", "run", "--state", STATE]
    command = board.command(words, network=True, user="edgewise-agent", env=SLOW)
    state = board.root / STATE.removeprefix("/")
    process = processes.Process(name, command, dict(os.environ), tmp_path / "agent.log")
    device = fleets.Device(name, profile_id, state, process)
    fleet.devices.append(device)
    process.start()
    fleet.wait_for("the board serves", lambda: device.url, BOOT_S)
    served = f"spotter-{machine}"
    fleet.edgewise(
        *("publish", path, "--sample", sample, "--version", 1, "-p", profile_id, "--channel", fleet.channel),
        *("--keys", fleet.keys, "--task", "classification", "--model", served, "--out", tmp_path / "release"),
    )
    rollout = fleet.start_rollout(served, 1, "--phase", "100", group=profile_id)
    ended = fleet.wait_for(
        "the rollout ends", lambda: (r := fleet.rollout(rollout))["status"] != "running" and r, ROLLOUT_S, 1.0
    )
    assert ended["status"] == "completed", json.dumps(ended)[:3000] + process.text[-3000:]
    about = httpx.get(f"{device.url}/v2/models/{served}", timeout=60).json()
    (takes,) = about["inputs"]
    for row, expected in zip(x[:4], y[:4], strict=True):
        tensor = {**takes, "shape": [1, *row.shape], "data": row.reshape(-1).tolist()}
        answer = httpx.post(f"{device.url}/v2/models/{served}/infer", json={"inputs": [tensor]}, timeout=60)
        found = np.array(answer.json()["outputs"][0]["data"])
        # Another version of the engine on another processor rounds some sums to the other side, layer by layer.
        assert found.argmax() == expected.argmax() and np.abs(found - expected).max() <= step * ROUNDING_STEPS, expected

    # Removed, but for the state.
    assert process.stop() == 0
    fleet.devices.remove(device)
    assert f"state stays in {STATE}" in board.run("sh", f"{folder}/install.sh", "--uninstall")
    assert not (board.root / "opt/edgewise-agent").exists()
    assert (state / "identity/identity.json").exists()
