"""A fleet of real processes: Mosquitto, `edgewise-server`, two `edgewise-agent`s, and `edgewise` for the operator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
CHANNEL, GROUP = "lab", "rooms"
COMMAND_S = 150.0
CANARY_THEN_ALL = ("--phase", "50:1", "--phase", "100")
PROBATION_INFERENCES = 20
QUICK_SERVER = {"EDGEWISE_SERVER_TICK_S": "0.1", "EDGEWISE_SERVER_EMBEDDED_BROKER": "false"}
QUICK_AGENT = {
    "EDGEWISE_AGENT_HTTP_PORT": "0",
    "EDGEWISE_AGENT_TELEMETRY_INTERVAL_S": "0.5",
    "EDGEWISE_AGENT_DRIFT_WINDOW_SAMPLES": "40",
    "EDGEWISE_AGENT_PROBATION__MIN_INFERENCES": str(PROBATION_INFERENCES),
    "EDGEWISE_AGENT_PROBATION__SECONDS": "0.3",
    "EDGEWISE_AGENT_RECONNECT_MIN_S": "0.1",
    "EDGEWISE_AGENT_RECONNECT_MAX_S": "0.5",
    "EDGEWISE_AGENT_RETRY_MIN_S": "0.2",
    "EDGEWISE_AGENT_RETRY_MAX_S": "0.5",
    "EDGEWISE_AGENT_RESEND_S": "1",
    "EDGEWISE_AGENT_MIN_FREE_MIB": "1",
    "EDGEWISE_AGENT_SELF_TEST__NICE": "0",
}
"""Waits of seconds where a real fleet has minutes; nothing else differs from the defaults."""


class Device:
    """An agent's process that stands in for a board."""

    def __init__(self, name: str, board: str, state: Path, process: Any) -> None:
        self.name = name
        self.board = board
        self.state = state
        self.process = process

    @property
    def url(self) -> str:
        """Where the newest process serves; it takes a free port at each start."""
        found: list[str] = re.findall(r"^serving at (http://\S+)$", self.process.text, re.MULTILINE)
        return found[-1] if found else ""

    def installed(self, model: str) -> dict[str, Any]:
        """What the device's state file says of a model: what a crash leaves it with."""
        try:
            document = json.loads((self.state / "installed.json").read_bytes())
        except FileNotFoundError:
            return {}
        found: dict[str, Any] = document["models"].get(model, {})
        return found

    def downloaded(self) -> int:
        """Bytes of unfinished downloads on the disk."""
        try:
            return sum(file.stat().st_size for file in (self.state / "store" / "partial").glob("*"))
        except FileNotFoundError:  # one was completed just now
            return 0

    def infer(self, model: str, x: NDArray[np.float32], client: httpx.Client | None = None) -> tuple[int, Any]:
        """Version and logits by the Open Inference Protocol; raises `httpx.HTTPError` where it is refused."""
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}
        post = httpx.post if client is None else client.post
        answer = post(f"{self.url}/v2/models/{model}/infer", json={"inputs": [tensor]}, timeout=20)
        answer.raise_for_status()
        document = answer.json()
        output = document["outputs"][0]
        return int(document["model_version"]), np.array(output["data"], np.float32).reshape(output["shape"])

    def serves(self, model: str) -> int:
        """The version that answers now; 0 where none does."""
        try:
            return self.infer(model, np.zeros((1, 4), np.float32))[0]
        except httpx.HTTPError:
            return 0


class Requests:
    """Clients that ask all devices without a pause, from `with` to its end."""

    def __init__(self, devices: Iterable[Device], model: str, x: NDArray[np.float32]) -> None:
        self.failed: list[str] = []
        self.answered: dict[str, list[tuple[int, Any]]] = {device.name: [] for device in devices}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(device, model, x)) for device in devices]

    def __enter__(self) -> Requests:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self, device: Device, model: str, x: NDArray[np.float32]) -> None:
        with httpx.Client() as client:
            while not self._stop.is_set():
                try:
                    self.answered[device.name].append(device.infer(model, x, client))
                except Exception as error:
                    self.failed.append(f"{device.name}: {error!r}")
                # Two busy loops would take both cores from what they watch.
                self._stop.wait(0.005)


class Fleet:
    """Everything of one fleet in one folder. `tools` is the module `processes`, `bundles` the module of that name."""

    channel, group = CHANNEL, GROUP

    def __init__(self, folder: Path, tools: Any, bundles: Any) -> None:
        self.folder = folder
        self.broker = tools.Mosquitto(folder)
        self.devices: list[Device] = []
        self._tools, self._bundles = tools, bundles
        self._others: list[Any] = []
        self._port = tools.free_port()
        self.state = folder / "server"
        self.keys = folder / "keys"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EDGEWISE_")},
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "EDGEWISE_CONFIG": str(folder / "no-config.toml"),
            "EDGEWISE_SERVER": f"http://127.0.0.1:{self._port}",
            "EDGEWISE_SERVER_HTTP_PORT": str(self._port),
            "EDGEWISE_SERVER_BROKER_PORT": str(self.broker.port),
            **QUICK_SERVER,
        }
        command = [tools.program("edgewise-server"), "run", "--state", str(self.state)]
        self.server = tools.Process("edgewise-server", command, self.env, folder / "server.log")

    # -- commands --------------------------------------------------------------------------

    def command(self, name: str, *arguments: object) -> str:
        """Run a command to its end; its output. Its exit status must be 0."""
        status, out, err = self._run(name, arguments)
        assert status == 0, f"{name} {arguments} ended with status {status}: {out}{err}"
        return out

    def edgewise(self, *arguments: object, expect: int = 0) -> dict[str, Any]:
        """Run `edgewise ... --json`; its document."""
        status, out, err = self._run("edgewise", [*arguments, "--json"])
        assert status == expect, f"edgewise {arguments} ended with status {status}, not {expect}: {out}{err}"
        found = json.loads(out)
        assert isinstance(found, dict)
        return found

    def _run(self, name: str, arguments: Iterable[object]) -> tuple[int, str, str]:
        words = [self._tools.program(name), *(str(a) for a in arguments)]
        done = subprocess.run(
            words,
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        return done.returncode, done.stdout, done.stderr

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET of the server's REST interface."""
        answer = httpx.get(
            f"{self.env['EDGEWISE_SERVER']}/api/v1{path}",
            params=params,
            headers={"Authorization": f"Bearer {self.env['EDGEWISE_TOKEN']}"},
            timeout=20,
        )
        answer.raise_for_status()
        return answer.json()

    def wait_for(self, what: str, look: Callable[[], T], timeout_s: float = 30.0, every_s: float = 0.05) -> T:
        """Wait for a condition while all processes live."""

        def alive() -> T:
            for process in self._processes():
                process.check()
            return look()

        found: T = self._tools.wait_for(what, alive, timeout_s, every_s)
        return found

    # -- life ------------------------------------------------------------------------------

    def found(self) -> None:
        """Broker, server, the ceremony of the keys, and the trust that it leaves on the server."""
        self.broker.start()
        self.command("edgewise-server", "init", "--state", self.state)
        self.env["EDGEWISE_TOKEN"] = (self.state / "admin.token").read_text().strip()
        self.start_server()
        online = self.state / "online.json"
        self.edgewise("keys", "init", self.keys, "--online", online, "--channel", f"{CHANNEL}:auto")
        self.edgewise("trust", "install", self.keys)
        self.edgewise("group", "create", GROUP)

    def start_server(self) -> None:
        """Start the server, and wait until it answers."""
        self.server.start()

        def healthy() -> bool:
            try:
                return httpx.get(f"{self.env['EDGEWISE_SERVER']}/api/v1/health", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        self.wait_for("the server answers", healthy, 90)

    def enrol(self, name: str, board: str) -> Device:
        """Enrol a device; it does not run yet."""
        file, state = self.folder / f"{name}.enrol.json", self.folder / name
        options = ("--channel", CHANNEL, "--group", GROUP, "--name", name, "--keys", self.keys, "--out", file)
        self.edgewise("device", "enrol-file", *options)
        self.command("edgewise-agent", "enrol", file, "--state", state, "--simulated-board", board)
        command = [self._tools.program("edgewise-agent"), "run", "--state", str(state)]
        env = {**self.env, **QUICK_AGENT}
        del env["EDGEWISE_TOKEN"]
        device = Device(name, board, state, self._tools.Process(name, command, env, self.folder / f"{name}.log"))
        self.devices.append(device)
        return device

    def start_device(self, device: Device, **settings: object) -> None:
        """Start an agent with settings of `EDGEWISE_AGENT_*`, and wait until it serves."""
        told = device.process.text.count("serving at ")
        device.process.start(**{f"EDGEWISE_AGENT_{name.upper()}": str(value) for name, value in settings.items()})
        self.wait_for(f"{device.name} serves", lambda: device.process.text.count("serving at ") > told)

    def start_other(self, name: str, *arguments: object, token: str) -> Any:
        """Start another of our commands in the background."""
        command = [self._tools.program(name), *(str(a) for a in arguments)]
        env = {**self.env, "EDGEWISE_TOKEN": token}
        process = self._tools.Process(name, command, env, self.folder / f"{name}-{len(self._others)}.log")
        self._others.append(process)
        process.start()
        return process

    def _processes(self) -> list[Any]:
        return [*self._others, *(device.process for device in self.devices), self.server, self.broker.process]

    def end(self) -> dict[str, tuple[int | None, str]]:
        """End everything; exit status and log of each process that still ran."""
        return {process.name: (process.stop(), process.text) for process in self._processes()}

    # -- what operators do ------------------------------------------------------------------

    def publish(self, model: str, *versions: int, **kind: Any) -> dict[str, Path]:
        """Make, sign and publish a bundle of each version for each device's board; the last version's by board."""
        folder = self.folder / "bundles"
        made = [
            {d.board: self._bundles.inference_bundle(folder, model, version, d.board, **kind) for d in self.devices}
            for version in versions
        ]
        self.release(f"{model}-{versions[-1]}", [path for each in made for path in each.values()])
        return made[-1]

    def release(self, name: str, bundles: Iterable[Path]) -> None:
        """Sign bundles with the offline keys (training bundles with the worker's), and publish them."""
        out = self.folder / "releases" / name
        out.parent.mkdir(exist_ok=True)
        self.edgewise("sign", *bundles, "--channel", CHANNEL, "--keys", self.keys, "--out", out)
        self.edgewise("publish", out, "--keys", self.keys)

    def start_rollout(self, model: str, version: int, *options: object, group: str = GROUP) -> str:
        """Start a rollout; its id."""
        found = self.edgewise("rollout", "start", model, version, "--group", group, *(options or CANARY_THEN_ALL))
        return str(found["id"])

    def watch_rollout(self, rollout: str, expect: int = 0, timeout_s: float = 100) -> dict[str, Any]:
        """Wait for a rollout's end, as an operator does; its last state."""
        self.edgewise("rollout", "status", rollout, "--watch", "--timeout", timeout_s, expect=expect)
        return self.rollout(rollout)

    def rollout(self, rollout: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/rollouts/{rollout}")
        return found

    def roll_out(self, model: str, version: int, *options: object, group: str = GROUP) -> dict[str, Any]:
        """Roll a version out and stay until the end, as an operator does; the rollout, which must complete."""
        more = (*(options or CANARY_THEN_ALL), "--watch", "--timeout", 100)
        found = self.edgewise("rollout", "start", model, version, "--group", group, *more)
        assert found["status"] == "completed", found
        return found

    def device(self, name: str) -> Device:
        return next(device for device in self.devices if device.name == name)

    def canary(self, rollout: str) -> Device:
        """The first device that a rollout exposed; waits for it."""
        exposed = self.wait_for("a canary", lambda: self.rollout(rollout)["devices"])
        return self.device(exposed[0]["device_id"])
