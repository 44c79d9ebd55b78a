"""Danger: a device's latency that is told is another model's, holds no network, or passes a budget that it misses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgewise_agent.__main__ import main
from edgewise_agent.install.bench import judge
from edgewise_cli.__main__ import run
from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.manifest import Budget

SETTINGS = """
http_port = 0
reconnect_min_s = 0.1
min_free_mib = 1
[probation]
min_inferences = 100000
seconds = 0.2
"""


@pytest.fixture
def agent(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `edgewise-agent` here; what it measures runs in a process of its own. Status, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def bundle_at(simulator: Any, tmp_path: Path) -> Callable[..., Path]:
    def make(**options: Any) -> Path:
        _, data = simulator.make_bundle(1, **options)
        path = tmp_path / "tiny-1.ewb"
        path.write_bytes(data)
        return path

    return make


def test_a_bundle_is_measured_on_the_device_against_its_own_budget(
    agent: Callable[..., Any], bundle_at: Callable[..., Path], simulator: Any
) -> None:
    kept = bundle_at(budget=Budget(size_bytes=1 << 20, latency_ms=5000, memory_mib=4000))
    status, out, err = agent("bench", kept, "--seconds", 0.2, "--board", simulator.BOARD, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["binding"] and found["passed"] and all(bound["passed"] for bound in found["bounds"])
    assert [bound["name"] for bound in found["bounds"]] == ["model size", "median latency", "peak memory"]
    times = found["latencies"]
    assert times["calls"] > 10 and 0 < times["median_ms"] <= times["p95_ms"] <= times["p99_ms"] <= times["maximum_ms"]
    assert sum(b["calls"] for b in found["histogram"]) == times["calls"]
    assert f"the budget of {simulator.BOARD} binds" in found["measured_on"]


def test_over_its_budget_it_ends_with_1_and_elsewhere_the_budget_does_not_bind(
    agent: Callable[..., Any], bundle_at: Callable[..., Path], simulator: Any
) -> None:
    over = bundle_at(budget=Budget(memory_mib=1))
    status, out, _ = agent("bench", over, "--seconds", 0.05, "--board", simulator.BOARD)
    assert status == 1 and "peak memory" in out and "missed\n" in out
    status, out, _ = agent("bench", over, "--seconds", 0.05, "--board", "somewhere-else")
    assert status == 0 and "missed, does not bind here" in out and "not what the bundle is for" in out


def test_a_broken_bundle_is_refused_and_not_measured(
    agent: Callable[..., Any], bundle_at: Callable[..., Path], tmp_path: Path
) -> None:
    status, out, err = agent("bench", bundle_at(wrong_golden=True), "--seconds", 0.05)
    assert status == 1 and "self-test-golden" in err and not out
    (tmp_path / "cut.ewb").write_bytes(bundle_at().read_bytes()[:-30])
    assert "bundle-damaged" in agent("bench", tmp_path / "cut.ewb")[2]
    assert "No such file" in agent("bench", tmp_path / "none.ewb")[2]
    assert agent("bench", tmp_path / "cut.ewb", "--seconds", "nan")[0] == 2


def test_a_budget_of_zero_bounds_nothing(bundle_at: Callable[..., Path]) -> None:
    with bundle_at(budget=Budget(latency_ms=2.0)).open("rb") as file:
        manifest = BundleReader(file).manifest
    assert [(b.name, b.passed) for b in judge(manifest, 10**9, 2.0, 1e9)] == [("median latency", True)]
    assert not judge(manifest, 0, 2.0001, 0)[0].passed


@pytest.mark.slow
def test_a_served_model_is_timed_over_the_network_and_the_devices_own_figures_are_told(
    voice: Any,
    mosquitto: Any,
    simulator: Any,
    enrol_here: Callable[..., Path],
    bundle_at: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = enrol_here(tmp_path / "state", mosquitto.port, voice.repository.root_bytes)
    (state / "agent.toml").write_text(SETTINGS)
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgewise_agent", "run", "--state", str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)
        plot = tmp_path / "plot.png"
        bundle = bundle_at()
        capsys.readouterr()
        status = run(["bench", "tiny", str(bundle), "--url", url, "--seconds", "0.4", "--plot", str(plot), "--json"])
        found = json.loads(capsys.readouterr().out)
        assert status == 0 and plot.read_bytes().startswith(b"\x89PNG")
        by_name, by_bundle = found["timed"]
        assert [t["inputs"] for t in found["timed"]] == ["made up", "golden"]
        assert by_name["name"] == by_bundle["name"] == "tiny" and by_name["version"] == "1"
        for timed in found["timed"]:
            on_device = timed["on_device"]
            assert 0 < on_device["mean_ms"] < timed["latencies"]["mean_ms"], "the network and HTTP come on top"
            assert "network" in timed["measured_on"] and url in timed["measured_on"]
            assert on_device["shared"], "each also answered the other's requests meanwhile"
        total = sum(t["latencies"]["calls"] for t in found["timed"])
        assert by_name["on_device"]["requests"] == total
        assert run(["bench", "nothing", "--url", url, "--seconds", "0.1"]) == 6
        assert "serves nothing" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate(timeout=10)
