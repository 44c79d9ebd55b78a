"""Guards against an agent that does not survive what happens to processes: signals, kills, a taken port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SETTINGS = """
http_port = 0
reconnect_min_s = 0.1
min_free_mib = 1
[probation]
min_inferences = 100000
seconds = {probation}
max_boots = 2
"""


@pytest.fixture
def process_state(tmp_path: Path, voice: Any, mosquitto: Any, enrol_here: Callable[..., Path]) -> Path:
    return enrol_here(tmp_path / "state", mosquitto.port, voice.repository.root_bytes)


@contextmanager
def agent_process(
    state: Path, *, probation: float = 0.2, folder: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    (state / "agent.toml").write_text(SETTINGS.format(probation=probation))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgewise_agent", "run", "--state", str(state.relative_to(folder) if folder else state)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving at http://"):
            raise AssertionError(f"the agent said {line!r}: {process.communicate(timeout=10)[1]}")
        yield process, line.split()[-1]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def test_sigterm_stops_cleanly_with_a_farewell(voice: Any, process_state: Path, simulator: Any) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with agent_process(process_state) as (process, url):
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)
        birth = voice.wait("status", lambda s: s.online, "a birth")
        assert birth.serving_url == url
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=15)
        assert process.returncode == 0
        assert "token" not in said.lower() and "Traceback" not in said
        voice.wait("status", lambda s: not s.online and s.session == birth.session and s.at > 0, "a farewell")


def test_a_relative_state_folder_is_found_by_the_self_test_too(voice: Any, process_state: Path, simulator: Any) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with agent_process(process_state, folder=process_state.parent):
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)


def test_a_killed_agent_resumes_and_a_model_that_kills_it_again_and_again_is_rolled_back(
    voice: Any, process_state: Path, simulator: Any, x: np.ndarray, infer_at: Callable[..., Any]
) -> None:
    good, good_data = simulator.make_bundle(1)
    deadly, deadly_data = simulator.make_bundle(2)
    voice.release(good, good_data)
    voice.release(deadly, deadly_data)
    with agent_process(process_state) as (process, url):
        voice.assign((good,), 1)
        voice.wait_model("committed", 1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)
    with agent_process(process_state, probation=600) as (process, url):
        voice.assign((deadly,), 2)
        voice.wait_model("probation", 2, active_version=2)
        process.kill()
    for _ in range(2):
        voice.forget()
        with agent_process(process_state, probation=600) as (process, url):
            assert infer_at(url, x)[0] == 2
            voice.wait_model("probation", 2, active_version=2)
            process.kill()
    voice.forget()
    with agent_process(process_state, probation=600) as (_process, url):
        assert infer_at(url, x)[0] == 1
        assert voice.wait_model("rolled_back", 2, active_version=1).error_code == "boot-loop"


def test_a_taken_port_is_named(process_state: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = subprocess.run(
            [sys.executable, "-m", "edgewise_agent", "run", "--state", str(process_state), "--http-port", port],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert found.returncode == 5
    assert "cannot be listened on" in found.stderr and "Traceback" not in found.stderr
