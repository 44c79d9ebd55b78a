"""Guards against a full disk that takes the serving model down, loses a rollback, or is never recovered from.

A real agent process on a real file system of a few MiB; mounting one needs root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SETTINGS = """
http_port = 0
reconnect_min_s = 0.1
retry_min_s = 0.2
retry_max_s = 0.5
min_free_mib = 0
log_level = "info"
[probation]
min_inferences = 100000
seconds = 0.2
"""
DISK_MIB = 8
BALLAST = "somebody-elses.file"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(path)], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    """Let somebody else take what is free, but for `leave` bytes."""
    with (disk / BALLAST).open("ab") as file:
        try:
            while True:
                os.write(file.fileno(), b"x" * 4096)
        except OSError:
            pass
        if leave:
            file.truncate(file.tell() - leave)


def fill_to_the_last_byte(disk: Path, state: Path) -> None:
    """Also where the agent keeps its reserve: which it does not set up again on a disk that is nearly full."""
    fill(disk)
    (state / "store" / "reserve").unlink(missing_ok=True)
    fill(disk)


def free(disk: Path) -> None:
    (disk / BALLAST).unlink()


class Process:
    def __init__(self, state: Path) -> None:
        self._log = state.parents[1] / f"log-{os.urandom(4).hex()}"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgewise_agent", "run", "--state", str(state)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("serving at http://"):
            self.process.wait(10)
            raise AssertionError(f"the agent said {line!r}: {self._log.read_text()}")
        self.url = line.split()[-1]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
        self.process.communicate()


@pytest.fixture
def state(disk: Path, voice: Any, mosquitto: Any, enrol_here: Callable[..., Path]) -> Path:
    state = enrol_here(disk / "state", mosquitto.port, voice.repository.root_bytes)
    (state / "agent.toml").write_text(SETTINGS)
    return state


def test_a_download_onto_a_full_disk_says_so_and_is_made_when_there_is_space(
    disk: Path, state: Path, voice: Any, simulator: Any, x: np.ndarray, infer_at: Callable[..., Any]
) -> None:
    small, small_data = simulator.make_bundle(1)
    large, large_data = simulator.make_bundle(2, padding=1_500_000)
    voice.release(small, small_data)
    voice.release(large, large_data)
    with Process(state) as agent:
        voice.assign((small,), 1)
        voice.wait_model("committed", 1)
        fill(disk, leave=600_000)
        voice.assign((large,), 2)
        report = voice.wait_model("failed", 2, active_version=1)
        assert report.error_code in ("disk-full", "disk-space")
        assert infer_at(agent.url, x)[0] == 1
        free(disk)
        voice.wait_model("committed", 2, active_version=2)
        assert infer_at(agent.url, x)[0] == 2


def test_a_disk_without_a_byte_keeps_serving_says_so_and_recovers(
    disk: Path, state: Path, voice: Any, simulator: Any, x: np.ndarray, infer_at: Callable[..., Any]
) -> None:
    first, first_data = simulator.make_bundle(1)
    second, second_data = simulator.make_bundle(2)
    voice.release(first, first_data)
    voice.release(second, second_data)
    with Process(state) as agent:
        voice.assign((first,), 1)
        voice.wait_model("committed", 1)
        fill_to_the_last_byte(disk, state)
        voice.assign((second,), 2)
        report = voice.wait("reported", lambda r: r.error_code in ("disk-full", "storage"), "a word on the disk")
        assert report.models[0].active_version == 1
        for _ in range(20):
            assert infer_at(agent.url, x)[0] == 1
        free(disk)
        voice.wait_model("committed", 2, active_version=2)
        assert infer_at(agent.url, x)[0] == 2


def test_an_agent_starts_and_serves_on_a_disk_without_a_byte(
    disk: Path, state: Path, voice: Any, simulator: Any, x: np.ndarray, infer_at: Callable[..., Any]
) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with Process(state):
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)
    fill_to_the_last_byte(disk, state)
    with Process(state) as agent:
        assert infer_at(agent.url, x)[0] == 1
        free(disk)
    with Process(state) as agent:
        assert infer_at(agent.url, x)[0] == 1


def test_the_reserve_lets_a_start_be_counted_on_a_full_disk(
    disk: Path, state: Path, voice: Any, simulator: Any, x: np.ndarray, infer_at: Callable[..., Any]
) -> None:
    file, data = simulator.make_bundle(1)
    voice.release(file, data)
    with Process(state) as agent:
        voice.assign((file,), 1)
        voice.wait_model("committed", 1)
        agent.process.kill()
        agent.process.wait(10)
    assert (state / "store" / "reserve").stat().st_size > 0
    fill(disk)
    before = (state / "installed.json").read_bytes()
    with Process(state) as agent:
        assert infer_at(agent.url, x)[0] == 1
        assert (state / "installed.json").read_bytes() != before, "the start was not noted"
        assert not (state / "store" / "reserve").exists()
