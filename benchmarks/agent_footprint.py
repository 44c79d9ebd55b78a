"""What the agent costs a device: installed size, and resident memory idle and serving.

    python benchmarks/agent_footprint.py [--venv FOLDER] [--seconds 5] [--json]

Makes a virtual environment that holds nothing but `.[agent]`, and runs `edgewise-agent` of
that environment as a device does: enrolled, connected to a real broker (Mosquitto), with
verified TUF metadata. The fleet's side is the simulator of the agent's tests, in this
process. Memory is the proportional set size (PSS) of the agent's main process, so that
pages shared with other processes count by their share: idle before any assignment, serving
after the self-test and activation of a small convolutional network (1 x 8 x 8, onnxruntime)
and some seconds of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from serving import build_model, load, request_bytes

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = ("torch", "fastapi", "sqlalchemy", "sqlmodel", "starlette", "pydantic", "mlflow", "tensorflow", "onnx")
GOAL_MIB = 110.0
DEVICE = "device-1"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_environment(folder: Path) -> Path:
    """A virtual environment with only the agent; its Python. An environment that is there is used again."""
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"making a virtual environment in {folder} ...")
        venv.create(folder, with_pip=True)
    say("installing .[agent] (some minutes where nothing is cached) ...")
    command = [str(python), "-m", "pip", "install", "--quiet", f"{ROOT}[agent]"]
    installed = subprocess.run(command, check=False, timeout=1200, capture_output=True, text=True)
    if installed.returncode:
        raise SystemExit(f"pip could not install the agent:\n{installed.stderr[-4000:]}")
    return python


def installed(python: Path) -> dict[str, str]:
    """Distributions of the environment, name to version."""
    out = subprocess.run([str(python), "-m", "pip", "list", "--format=json"], check=True, capture_output=True)
    return {row["name"].lower(): row["version"] for row in json.loads(out.stdout)}


def size_mb(folder: Path) -> float:
    """Bytes of all files below a folder, in MB; hard links count once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        stat = path.stat()
        if (stat.st_dev, stat.st_ino) not in seen:
            seen.add((stat.st_dev, stat.st_ino))
            total += stat.st_size
    return total / 1e6


def pss_mib(pid: int) -> float:
    """Proportional set size of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no PSS of process {pid}")


def settled_pss(pid: int, seconds: float = 3.0) -> float:
    """PSS once two readings half a second apart agree within 0.2 MiB, or after some seconds."""
    last, end = pss_mib(pid), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.5)
        now = pss_mib(pid)
        if abs(now - last) < 0.2:
            return now
        last = now
    return last


@contextmanager
def broker(folder: Path) -> Iterator[int]:
    """A real Mosquitto on a free port of loopback."""
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        raise SystemExit("mosquitto is not installed: apt install mosquitto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
        "max_packet_size 8388608\npersistence false\nlog_type none\n"
    )
    process = subprocess.Popen([binary, "-c", str(config)])
    try:
        until(lambda: _listens(port), 10, "mosquitto to listen")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    pause, end = threading.Event(), time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:g} s for {what}")
        pause.wait(0.05)


def simulator() -> Any:
    """The fleet simulator of the agent's tests."""
    path = ROOT / "tests" / "agent" / "fleet_simulator.py"
    spec = importlib.util.spec_from_file_location("fleet_simulator", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fleet_simulator"] = module
    spec.loader.exec_module(module)
    return module


def enrol(state: Path, port: int, fleet: Any, tuf_root: bytes) -> None:
    """What an enrolment leaves in the state folder."""
    from edgewise_agent.identity.certificates import key_pem, make_csr, make_key
    from edgewise_agent.identity.identity import FOLDER, Card, save_identity
    from edgewise_protocol.enrolment import BrokerAddress

    (state / FOLDER).mkdir(parents=True)
    key, authority = make_key(), fleet.Authority()
    save_identity(
        state,
        Card(
            device_id=DEVICE,
            channel=fleet.CHANNEL,
            server_url="http://127.0.0.1:1",
            broker=BrokerAddress(host="127.0.0.1", port=port),
            simulated_board=fleet.BOARD,
        ),
        key=key_pem(key),
        certificate=authority.issue(make_csr(key), DEVICE),
        fleet_ca=authority.root_pem,
        tuf_root=tuf_root.decode(),
    )


def small_bundle(fleet: Any) -> tuple[Any, bytes]:
    """A bundle of the small network, with golden samples and a baseline."""
    import onnxruntime
    from edgewise_protocol.bundle import file_entry, write_bundle
    from edgewise_protocol.features import build_baseline
    from edgewise_protocol.manifest import Golden, Manifest, Requirements, TensorSpec
    from edgewise_protocol.sketches import encode_baseline
    from edgewise_protocol.targets import bundle_path
    from safetensors.numpy import save

    model = build_model("small")
    x = np.random.default_rng(3).normal(size=(200, 1, 8, 8)).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    files = {
        "model.onnx": model,
        "golden.safetensors": save({"input.x": x[:16], "output.logits": y[:16]}),
        "baseline.json": encode_baseline(build_baseline(x, y, "classification", kll=False)),
    }
    manifest = Manifest(
        spec_version="1.0",
        kind="inference",
        model="small",
        version=1,
        profile=fleet.BOARD,
        requires=Requirements(engine="onnxruntime", compatible=(fleet.BOARD,)),
        files=tuple(file_entry(name, data) for name, data in files.items()),
        task="classification",
        inputs=(TensorSpec(name="x", dtype="FP32", shape=(-1, 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", dtype="FP32", shape=(-1, 10)),),
        model_file="model.onnx",
        golden=Golden(file="golden.safetensors", samples=16, atol=1e-3, rtol=1e-3),
        baseline_file="baseline.json",
    )
    out = io.BytesIO()
    write_bundle(out, manifest, files)
    data = out.getvalue()
    return fleet.sign_as(manifest, data, bundle_path(fleet.CHANNEL, "small", fleet.BOARD, 1)), data


@contextmanager
def agent(python: Path, state: Path) -> Iterator[tuple[int, int]]:
    """The agent of the environment; its process id and its port."""
    (state / "agent.toml").write_text("http_port = 0\nmin_free_mib = 1\n")
    with (state / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [str(python), "-m", "edgewise_agent", "run", "--state", str(state)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving at http://"):
            raise SystemExit(f"the agent did not start: {(state / 'agent.log').read_text()[-2000:]}")
        yield process.pid, int(line.split()[-1].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(30)


def measure(python: Path, folder: Path, seconds: float) -> dict[str, float]:
    """Idle and serving PSS of the agent's main process, and what it served meanwhile."""
    fleet = simulator()
    with broker(folder) as port:
        voice = fleet.FleetVoice(port, DEVICE)
        try:
            enrol(folder / "state", port, fleet, voice.repository.root_bytes)
            say("starting the agent ...")
            begin = time.monotonic()
            with agent(python, folder / "state") as (pid, http):
                started = time.monotonic() - begin
                voice.wait("status", lambda status: status.online, "the agent to be online")
                idle = settled_pss(pid)
                say(f"idle: {idle:.1f} MiB; releasing and assigning the model ...")
                file, data = small_bundle(fleet)
                voice.release(file, data)
                voice.assign((file,), 1)
                url = f"http://127.0.0.1:{http}/v2/models/small/ready"
                until(lambda: _answers(url), 60, "the model to be active")
                loaded = settled_pss(pid)
                say(f"serving for {seconds:g} s ...")
                rates = asyncio.run(load(http, request_bytes("small", True), 4, seconds))
                return {
                    "start_s": started,
                    "idle_pss_mib": idle,
                    "loaded_pss_mib": loaded,
                    "serving_pss_mib": pss_mib(pid),
                    "requests_per_s": rates["requests_per_s"],
                    "median_ms": rates["median_ms"],
                }
        finally:
            voice.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, help="keep the environment here, and use it again")
    parser.add_argument("--seconds", type=float, default=5.0, help="of serving, at most 60")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = (given.venv or folder / "venv").absolute()
        python = make_environment(environment)
        found = installed(python)
        unwanted = sorted(name for name in FORBIDDEN if name in found)
        if unwanted:
            raise SystemExit(f"the agent's environment holds {', '.join(unwanted)}")
        figures: dict[str, Any] = {"packages": len(found), "installed_mb": size_mb(environment)}
        figures |= measure(python, folder, min(max(given.seconds, 0.5), 60.0))
        figures["goal_mib"] = GOAL_MIB
    if given.json:
        print(json.dumps(figures, indent=1))
    else:
        print(f"installed: {figures['installed_mb']:.0f} MB in {figures['packages']} packages, none of them a server's")
        print(f"start to serving endpoint: {figures['start_s']:.2f} s")
        print(f"idle: {figures['idle_pss_mib']:.1f} MiB PSS; model loaded: {figures['loaded_pss_mib']:.1f} MiB")
        print(
            f"serving: {figures['serving_pss_mib']:.1f} MiB PSS (goal {GOAL_MIB:g}) at "
            f"{figures['requests_per_s']:.0f} requests/s, median {figures['median_ms']:.2f} ms"
        )
    return 0 if figures["serving_pss_mib"] <= GOAL_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
