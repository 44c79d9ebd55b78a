"""Guards against a swap of models that the device's own applications notice: a refused request, or a mixed answer.

A real agent process is asked over HTTP by several clients without a pause, while assignments over a
real broker make it verify, self-test, activate and confirm one version after the other.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CLIENTS = 4
SWAPS = 8
ALL_SWAPS = 100
VERSIONS = (1, 2)
SETTINGS = """
http_port = 0
reconnect_min_s = 0.1
min_free_mib = 1
[probation]
min_inferences = 20
seconds = 600
[self_test]
nice = 0
"""


class Client:
    """One application: asks again and again on one connection, and holds each answer against its version."""

    def __init__(self, address: str, simulator: Any, seed: int) -> None:
        self._address = address
        self._stop = threading.Event()
        self.served: dict[int, int] = dict.fromkeys(VERSIONS, 0)
        self.failed: list[str] = []
        x = np.random.default_rng(seed).normal(size=(1 + seed % 5, 4)).astype(np.float32)
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}
        self._body = json.dumps({"inputs": [tensor]})
        self._expected = {version: simulator.logits_of(version, x) for version in VERSIONS}
        self._path = f"/v2/models/{simulator.MODEL}/infer"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=20)
        while not self._stop.is_set():
            try:
                connection.request("POST", self._path, self._body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                self._judge(response.status, response.read())
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                connection.close()
        connection.close()

    def _judge(self, status: int, body: bytes) -> None:
        if status != 200:
            self.failed.append(f"{status}: {body[:200]!r}")
            return
        answer = json.loads(body)
        version, output = int(answer["model_version"]), answer["outputs"][0]
        got = np.array(output["data"], np.float32).reshape(output["shape"])
        if np.allclose(got, self._expected[version], atol=1e-4):
            self.served[version] += 1
        else:
            self.failed.append(f"version {version} answered {got.tolist()}")


@pytest.fixture
def broker(agent_tools: Any, tmp_path: Path) -> Iterator[Any]:
    found = agent_tools.Mosquitto(tmp_path)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def fleet(broker: Any, simulator: Any) -> Iterator[Any]:
    """The fleet's server, with both versions released."""
    voice = simulator.FleetVoice(broker.port, "device-1")
    voice.bundles = {}
    for version in VERSIONS:
        file, data = simulator.make_bundle(version)
        voice.release(file, data)
        voice.bundles[version] = file
    yield voice
    voice.close()


@pytest.fixture
def address(broker: Any, fleet: Any, enrol: Callable[..., None], tmp_path: Path) -> Iterator[str]:
    """Where a real agent process serves."""
    state = tmp_path / "state"
    enrol(state, fleet.repository.root_bytes, broker.port)
    (state / "agent.toml").write_text(SETTINGS)
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgewise_agent", "run", "--state", str(state)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving at http://"), f"{line}{(tmp_path / 'log').read_text()}"
            yield line.split("//")[-1].strip()
        finally:
            process.terminate()
            process.communicate(timeout=20)
    said = (tmp_path / "log").read_text()
    assert process.returncode == 0 and "Traceback" not in said, said[-4000:]


def swap(fleet: Any, version: int, number: int) -> None:
    fleet.forget()
    fleet.assign((fleet.bundles[version],), number)
    fleet.wait_model("committed", version, active_version=version)


def hammer(fleet: Any, address: str, simulator: Any, swaps: int) -> str:
    """Swap under load; returns what was counted."""
    fleet.assign((fleet.bundles[VERSIONS[0]],), 1)
    fleet.wait_model("probation", VERSIONS[0], active_version=VERSIONS[0])
    clients = [Client(address, simulator, seed) for seed in range(CLIENTS)]
    try:
        fleet.wait_model("committed", VERSIONS[0], active_version=VERSIONS[0])
        for n in range(swaps):
            swap(fleet, VERSIONS[(n + 1) % 2], n + 2)
    finally:
        for client in clients:
            client.stop()
    served = {version: sum(client.served[version] for client in clients) for version in VERSIONS}
    failed = [text for client in clients for text in client.failed]
    assert not failed, f"{len(failed)} of {sum(served.values())} requests failed: {failed[:5]}"
    assert all(count >= swaps for count in served.values()), served
    return (
        f"{swaps} hot swaps, {sum(served.values())} requests served by {CLIENTS} clients {served}, {len(failed)} failed"
    )


def test_no_request_fails_during_hot_swaps(
    fleet: Any, address: str, simulator: Any, tell: Callable[[str], None]
) -> None:
    tell(hammer(fleet, address, simulator, SWAPS))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_fails_during_a_hundred_hot_swaps(
    fleet: Any, address: str, simulator: Any, tell: Callable[[str], None]
) -> None:
    tell(hammer(fleet, address, simulator, ALL_SWAPS))
