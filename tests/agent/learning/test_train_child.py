"""The danger: a training process that outlives its agent, or takes more of the device than it may."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgewise_agent.learning import memory as remembering
from edgewise_agent.learning.errors import LearningError, TrainingFailedError
from edgewise_agent.learning.job import JOB_FILE, TrainJob, read_result
from edgewise_agent.learning.memory import RoundMemory
from edgewise_agent.learning.process import TrainProcess
from edgewise_agent.learning.round import Update

LONG = {"epochs": 1000, "max_steps": 1_000_000, "batch_size": 2}


@pytest.fixture
def job(material: Any) -> Any:
    def make(**more: Any) -> TrainJob:
        return TrainJob(
            **{
                "bundle": str(material.bundle),
                "weights": str(material.weights),
                "data": str(material.data),
                "model": "digits",
                "epochs": 1,
                "batch_size": 10,
                "lr": 0.1,
                "mu": 0.0,
                "max_steps": 99,
                "seed": 1,
                "device_id": "d1",
                "cpu_s": 60,
                "memory_mib": 1024,
                "nice": 10,
                **more,
            }
        )

    return make


def start_child(folder: Path, job: TrainJob) -> subprocess.Popen[bytes]:
    (folder / JOB_FILE).write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-P", "-m", "edgewise_agent.learning.train_child", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, cwd=folder)


def test_the_child_ends_with_its_agent(job: Any, tmp_path: Path) -> None:
    child = start_child(tmp_path, job(**LONG))
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(20) == 3


def test_the_child_limits_itself(job: Any, tmp_path: Path) -> None:
    child = start_child(tmp_path, job(**LONG, cpu_s=600, memory_mib=512))
    try:
        limit = -1
        while limit != 512 << 20:
            assert child.poll() is None
            limit = resource.prlimit(child.pid, resource.RLIMIT_DATA)[0]
        assert resource.prlimit(child.pid, resource.RLIMIT_CPU)[0] == 600
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == 10
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(20)


def test_too_little_memory_fails_the_training_and_says_so(job: Any, tmp_path: Path) -> None:
    with pytest.raises(LearningError):
        TrainProcess(tmp_path).run(job(memory_mib=24), 30)


def test_no_heavy_library_is_loaded_but_the_runtime(job: Any, tmp_path: Path, material: Any) -> None:
    """What is not imported costs no memory: torch, tuf and the serving of HTTP stay out."""
    (tmp_path / JOB_FILE).write_bytes(msgspec.json.encode(job()))
    program = (
        "import sys, pathlib; from edgewise_agent.learning import train_child;"
        f"code = train_child.main(pathlib.Path({str(tmp_path)!r}));"
        "heavy = {'torch', 'tuf', 'httptools', 'paho', 'ai_edge_litert', 'cryptography', 'sqlite3'} & set(sys.modules);"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        status = child.wait(60)
        assert child.stderr is not None
        assert (status, child.stderr.read()) == (0, b"")
    assert read_result(tmp_path).update is not None


def test_another_models_bundle_is_refused(job: Any, tmp_path: Path) -> None:
    with pytest.raises(LearningError, match="the offer trains other") as caught:
        TrainProcess(tmp_path).run(job(model="other"), 30)
    assert caught.value.code == "round-bundle"


def test_a_damaged_bundle_is_named(job: Any, tmp_path: Path, material: Any) -> None:
    bad = tmp_path / "bad.ewb"
    bad.write_bytes(material.bundle.read_bytes()[:-40])
    with pytest.raises(LearningError) as caught:
        TrainProcess(tmp_path).run(job(bundle=str(bad)), 30)
    assert caught.value.code == "bundle-damaged"


def test_a_process_that_was_ended_does_not_start(job: Any, tmp_path: Path) -> None:
    process = TrainProcess(tmp_path)
    process.end()
    with pytest.raises(TrainingFailedError, match="ended before it began"):
        process.run(job(), 30)


def test_memory_survives_and_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "_MAX_ROUNDS", 8)
    memory = RoundMemory(tmp_path)
    update = Update(length=3, sha256="0" * 64, samples=2, metrics={"steps": 1.0})
    for i in range(12):
        memory.put(f"r{i}", "training")
    memory.put("r11", "ready", update)
    again = RoundMemory(tmp_path)
    assert again.get("r0") is None
    found = again.get("r11")
    assert found is not None
    assert (found.state, found.update) == ("ready", update)


def test_damaged_memory_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "rounds.json").write_bytes(b'{"r1": {"state"')
    memory = RoundMemory(tmp_path)
    assert memory.get("r1") is None
    memory.put("r1", "done")
    found = RoundMemory(tmp_path).get("r1")
    assert found is not None
    assert found.state == "done"
