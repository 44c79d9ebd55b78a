"""Fixtures of the agent's tests: a real broker, a simulated fleet, an enrolled device, a running agent."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_agent.app import Agent
from edgewise_agent.config import AgentConfig, ProbationConfig, SelfTestConfig
from edgewise_agent.identity.certificates import key_pem, make_csr, make_key
from edgewise_agent.identity.identity import FOLDER, Card, save_identity
from edgewise_protocol.enrolment import BrokerAddress
from iotcore import Broker

DEVICE = "device-1"


def _load_simulator() -> Any:
    name = "agent_fleet_simulator"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("fleet_simulator.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def simulator() -> Any:
    """The module `fleet_simulator`."""
    return _load_simulator()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Mosquitto:
    """A real Mosquitto with its own port and configuration."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if found is None:
            pytest.fail("mosquitto is not installed: apt install mosquitto")
        self._binary = found
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
            "max_packet_size 8388608\npersistence false\nlog_type none\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([self._binary, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except ConnectionRefusedError:
                threading.Event().wait(0.02)
        raise AssertionError("mosquitto did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@pytest.fixture(scope="session")
def make_mosquitto() -> Callable[[Path], Mosquitto]:
    return Mosquitto


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.stop()


IOTCORE = """
id = 0
[router]
id = 0
max_connections = 200
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "v5-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
    [v5.1.connections]
    connection_timeout_ms = 5000
    max_payload_size = 8388608
    max_inflight_count = 100
    dynamic_filters = true
"""


@pytest.fixture
def iotcore_port(tmp_path: Path) -> Iterator[int]:
    """Port of a real iotcore, the demo's embedded broker."""
    port = free_port()
    config = tmp_path / "iotcore.toml"
    config.write_text(IOTCORE.format(port=port))
    with Broker(config_path=str(config)):
        yield port


@pytest.fixture
def voice(mosquitto: Mosquitto, simulator: Any) -> Iterator[Any]:
    """The fleet's server on the broker."""
    found = simulator.FleetVoice(mosquitto.port, DEVICE)
    yield found
    found.close()


@pytest.fixture(scope="session")
def authority(simulator: Any) -> Any:
    return simulator.Authority()


@pytest.fixture(scope="session")
def enrol_here(authority: Any, simulator: Any) -> Callable[[Path, int, bytes], Path]:
    """Writes the identity that an enrolment leaves into a state folder: (folder, broker port, TUF root)."""

    def write(state: Path, port: int, tuf_root: bytes, board: str = simulator.BOARD) -> Path:
        (state / FOLDER).mkdir(parents=True)
        key = make_key()
        card = Card(
            device_id=DEVICE,
            channel=simulator.CHANNEL,
            server_url="http://127.0.0.1:1",
            broker=BrokerAddress(host="127.0.0.1", port=port),
            simulated_board=board,
        )
        save_identity(
            state,
            card,
            key=key_pem(key),
            certificate=authority.issue(make_csr(key), DEVICE),
            fleet_ca=authority.root_pem,
            tuf_root=tuf_root.decode(),
        )
        return state

    return write


def quick_config(**changes: Any) -> AgentConfig:
    """Settings with short waits."""
    values: dict[str, Any] = {
        "http_port": 0,
        "reconnect_min_s": 0.1,
        "reconnect_max_s": 0.5,
        "fetch_timeout_s": 5.0,
        "want_attempts": 2,
        "want_wait_s": 0.3,
        "resend_s": 1.0,
        "retry_min_s": 0.2,
        "retry_max_s": 0.5,
        "min_free_mib": 1,
        "telemetry_interval_s": 30.0,
        "probation": ProbationConfig(min_inferences=3, seconds=0.1),
        "self_test": SelfTestConfig(nice=0),
    }
    return AgentConfig(**{**values, **changes})


class RunningAgent:
    """A real agent on an event loop of its own."""

    def __init__(self, state: Path, config: AgentConfig) -> None:
        self.state = state
        self.agent: Agent | None = None
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> RunningAgent:
        self._thread.start()
        self.call(self._start())
        return self

    async def _start(self) -> None:
        self.agent = Agent(self.state, self._config)
        await self.agent.start()

    def __exit__(self, *_: object) -> None:
        if self.agent is not None:
            self.call(self.agent.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def restart(self) -> None:
        """Stop and start the agent, as an upgrade of the package does."""
        assert self.agent is not None
        self.call(self.agent.stop())
        self.call(self._start())

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def infer(self, x: np.ndarray, model: str = "tiny") -> tuple[int, np.ndarray]:
        """(version, logits) as the endpoint answers."""
        assert self.agent is not None
        return infer(self.agent.serving_url, x, model)


def infer(url: str, x: np.ndarray, model: str = "tiny") -> tuple[int, np.ndarray]:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}
    request = urllib.request.Request(
        f"{url}/v2/models/{model}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        answer = json.load(response)
    output = answer["outputs"][0]
    return int(answer["model_version"]), np.array(output["data"], np.float32).reshape(output["shape"])


@pytest.fixture
def run_agent(
    tmp_path: Path, voice: Any, mosquitto: Mosquitto, enrol_here: Callable[..., Path]
) -> Callable[..., RunningAgent]:
    """Makes a running agent: enrolled in the voice's fleet on first use; the same device afterwards."""

    def make(**changes: Any) -> RunningAgent:
        state = tmp_path / "state"
        if not state.exists():
            enrol_here(state, mosquitto.port, voice.repository.root_bytes)
        return RunningAgent(state, quick_config(**changes))

    return make


@pytest.fixture
def unused_port() -> int:
    return free_port()


@pytest.fixture
def infer_at() -> Callable[..., tuple[int, np.ndarray]]:
    """Asks the tiny model at a URL."""
    return infer


@pytest.fixture(scope="session")
def start_agent() -> Callable[..., RunningAgent]:
    """Makes a running agent from a state folder."""
    return lambda state, **changes: RunningAgent(state, quick_config(**changes))


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
