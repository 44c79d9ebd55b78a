"""Danger: a command line that takes the wrong thing, is slow to repeat, or leaves files behind when it is ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SECONDS = 120


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ONNX file of two layers, and samples of its input."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(9)
    weights = [rng.normal(size=(12, 40)).astype(np.float32), rng.normal(size=(40, 3)).astype(np.float32) / 6]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["p"], name="first"),
            helper.make_node("Relu", ["p"], ["h"], name="relu"),
            helper.make_node("MatMul", ["h", "w1"], ["y"], name="second"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(made, str(folder / "small.onnx"))
    x = rng.normal(size=(120, 12)).astype(np.float32)
    y = (np.maximum(x @ weights[0], 0) @ weights[1]).argmax(1).astype(np.int64)
    np.savez(folder / "samples.npz", x=x, y=y)
    return folder


def arguments(model: Path, out: Path, *more: str) -> list[str]:
    return [
        "convert", str(model / "small.onnx"), "--version", "1", "-p", "x86-64", "--samples", str(model / "samples.npz"),
        "--objective", "size", "--accuracy-drop", "10", "--prove", "never", "--out", str(out), *more,
    ]  # fmt: skip


def test_a_finished_file_is_converted_and_everything_is_told(
    model: Path, tmp_path: Path, edgewise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "cache"))
    done = edgewise(*arguments(model, tmp_path / "out", "--name", "tiny", "--report", str(tmp_path / "told")))
    assert done.status == 0, done.err
    assert "onnxruntime float32" in done.out and "evenly spread" in done.out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny-1-x86-64.ewb"]
    assert {"tiny-1-x86-64.report.json", "tiny-1-x86-64.report.html"} <= {p.name for p in (tmp_path / "told").iterdir()}
    again = edgewise(*arguments(model, tmp_path / "out", "--name", "tiny", "--json"))
    document = json.loads(again.out)
    (bundle,) = document["bundles"]
    assert bundle["cached"] and bundle["passed"]
    assert bundle["search"]["metric"] == "top1"
    rows = bundle["search"]["rows"]
    assert rows[0]["verdict"] == "winner"
    assert all(row["reason"] for row in rows if row["verdict"] == "rejected")


@pytest.mark.parametrize(
    ("more", "status", "named"),
    [
        (("--objective", "speed"), 2, "latency, size"),
        (("--prove", "maybe"), 2, "auto, always, never"),
        (("--state", "a"), 2, "INPUT=OUTPUT"),
        (("--task", "guessing"), 2, "classification"),
        (("--metric", "taste"), 2, "no metric"),
        (("--state", "a=b"), 1, "takes x"),
        (("--engine", "litert"), 1, "no form of the engine litert"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    model: Path, tmp_path: Path, edgewise: Callable[..., Any], more: tuple[str, ...], status: int, named: str
) -> None:
    done = edgewise(*arguments(model, tmp_path / "out", "--no-cache", *more))
    assert done.status == status
    assert named in done.err
    assert not (tmp_path / "out").exists()


def test_a_budget_that_nothing_keeps_is_exit_status_1_with_every_reason(
    model: Path, tmp_path: Path, edgewise: Callable[..., Any]
) -> None:
    done = edgewise(
        *arguments(model, tmp_path / "out", "--no-cache", "--min-metric", "1", "--accuracy-drop", "0", "--json")
    )
    document = json.loads(done.out)
    bundle = document["bundles"][0] if done.status == 0 else document["error"]["bundles"][0]
    rejected = [row for row in bundle["search"]["rows"] if row["verdict"] == "rejected"]
    assert all(row["reason"] for row in rejected)
    assert (done.status == 0) == bundle["passed"]


def test_passes_are_listed_without_a_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; from edgewise_cli.__main__ import run; status = run(['passes', '--json'])\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'ai_edge_litert', 'optuna', 'matplotlib'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True)
    listed = {entry["name"] for entry in json.loads(done.stdout)["passes"]}
    assert {"onnx_int8", "tflite_int8", "onnx_ort"} <= listed
    assert done.stderr.strip() == "set()"


def test_a_repeat_loads_nothing_that_computes_and_takes_a_fraction_of_the_processor(
    model: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from edgewise_cli.__main__ import run; status = run(sys.argv[1:])\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'ai_edge_litert', 'optuna', 'matplotlib'} & set(sys.modules)\n"
        "import resource; used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(sorted(heavy), used.ru_utime + used.ru_stime, file=sys.stderr); sys.exit(status)"
    )
    env = {**os.environ, "EDGEWISE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    digests, seconds = [], []
    for place in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments(model, tmp_path / place, "--json")],
            capture_output=True, text=True, timeout=SECONDS, check=True, env=env,
        )  # fmt: skip
        digests.append(json.loads(done.stdout)["bundles"][0]["sha256"])
        heavy, used = done.stderr.strip().splitlines()[-1].rsplit(" ", 1)
        seconds.append(float(used))
    assert heavy == "[]"
    assert seconds[1] < seconds[0] / 2
    assert digests[0] == digests[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_an_interrupted_conversion_leaves_nothing(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    env = {**os.environ, "EDGEWISE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "edgewise_cli", *arguments(model, out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + SECONDS
        while not list(cache.glob("converter/scores/*/*")):
            assert time.monotonic() < deadline, "it has kept no score yet"
            with pytest.raises(subprocess.TimeoutExpired):  # else it ended before it could be interrupted
                child.wait(0.01)
        child.send_signal(number)
        _, told = child.communicate(timeout=SECONDS)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130, told
    assert "Traceback" not in told
    assert not out.exists()
    assert [p for p in cache.rglob("*") if p.name.endswith(".tmp")] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_named_and_leaves_nothing(model: Path, tmp_path: Path, edgewise: Callable[..., Any]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        done = edgewise(*arguments(model, small, "--no-cache"))
        left = list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)
        shutil.rmtree(small)
    assert done.status == 1
    assert "No space left" in done.err
    assert left == []


def test_a_board_of_ones_own_is_a_file_and_what_is_wrong_in_it_is_named(
    model: Path, tmp_path: Path, edgewise: Callable[..., Any]
) -> None:
    board = tmp_path / "kiosk.toml"
    text = (files("edgewise_profiles") / "boards" / "x86-64.toml").read_text()
    board.write_text(text)
    again = [str(board) if word == "x86-64" else word for word in arguments(model, tmp_path / "out")]
    done = edgewise(*again, "--precision", "onnx-int8", "--no-cache")
    assert done.status == 0, done.err
    assert {p.suffix for p in (tmp_path / "out").glob("*-kiosk.*")} >= {".ewb", ".json"}
    (made,) = (tmp_path / "out").glob("*-kiosk.ewb")
    asked = json.loads(edgewise("prove", str(made), "--on", str(board), "--json").out)
    rows = asked.get("error", asked)["runs"]
    assert {row["on"] for row in rows} == {str(board)}, "the catalogue has no such profile; the file says what it is"
    board.write_text(text.replace("[budget]", "[budget]\nlatencyms = 3"))
    wrong = edgewise(*again, "--no-cache")
    assert wrong.status == 2 and "latencyms" in wrong.err
