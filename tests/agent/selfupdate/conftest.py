"""Fixtures: wheels of newer agents, and a device whose agent is run by the launcher, in real processes."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
QUICK = {
    "EDGEWISE_AGENT_PROBATION__SECONDS": "0.3",
    "EDGEWISE_AGENT_PROBATION__MIN_INFERENCES": "3",
    "EDGEWISE_AGENT_RECONNECT_MIN_S": "0.1",
    "EDGEWISE_AGENT_RECONNECT_MAX_S": "0.5",
    "EDGEWISE_AGENT_RETRY_MIN_S": "0.2",
    "EDGEWISE_AGENT_RETRY_MAX_S": "0.5",
    "EDGEWISE_AGENT_RESEND_S": "1",
    "EDGEWISE_AGENT_MIN_FREE_MIB": "1",
    "EDGEWISE_AGENT_SELF_TEST__NICE": "0",
    "EDGEWISE_AGENT_AGENT_CONFIRM_S": "30",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Waits of seconds where a real fleet has minutes."""


@pytest.fixture(scope="session")
def agents() -> Any:
    """The module `agents`."""
    name = "selfupdate_agents"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("agents.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def wheels(agents: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real wheels of version 0.2.0."""
    found: list[Path] = agents.build_wheels(tmp_path_factory.mktemp("wheels"), "0.2.0")
    return found


class Device:
    """A device whose agent is run by the launcher; whoever ends the launcher may start it again, as systemd does."""

    def __init__(self, state: Path, port: int) -> None:
        self.state = state
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = state.with_name("agent.log")
        self.env = {**os.environ, **QUICK, "EDGEWISE_AGENT_HTTP_PORT": str(port)}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> None:
        self.env |= env
        command = [sys.executable, "-m", "edgewise_agent.launcher", "run", "--state", str(self.state)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)

    def keep_running(self) -> None:
        """What a service manager does."""
        if self.process is None or self.process.poll() is not None:
            self.start()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """End everything at once, as a power cut does."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self.process.wait(10)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, what: str, look: Callable[[], T], timeout_s: float = 40.0) -> T:
        deadline, pause = time.monotonic() + timeout_s, threading.Event()
        while not (found := look()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {timeout_s:g} s\n{self.text[-6000:]}")
            pause.wait(0.05)
        return found


@pytest.fixture
def device(
    tmp_path: Path, voice: Any, mosquitto: Any, enrol_here: Callable[..., Path], unused_port: int
) -> Iterator[Device]:
    """Enrolled, not started."""
    state = tmp_path / "state"
    enrol_here(state, mosquitto.port, voice.repository.root_bytes)
    made = Device(state, unused_port)
    yield made
    made.kill()


@pytest.fixture
def serves(infer_at: Callable[..., Any], x: Any) -> Callable[[Device], int]:
    """The version of the tiny model that answers at a device, 0 if none does."""

    def ask(device: Device) -> int:
        try:
            return int(infer_at(device.url, x)[0])
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return 0

    return ask
