"""Danger: a latency of the wrong model, place or thread count; a bench that hangs, or leaves processes behind."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from edgewise_converter.benching import process
from edgewise_converter.benching.bench import bench
from edgewise_converter.benching.child import Task, made_up
from edgewise_converter.benching.process import BenchProcess
from edgewise_converter.benching.subject import prepare, read_bundle
from edgewise_converter.benching.where import where
from edgewise_converter.errors import ConverterError, EngineError, ModelFileError, ProofMissingError, SampleError
from edgewise_converter.hardware import Host, read_host
from edgewise_profiles import catalogue
from edgewise_protocol.bundle import file_entry, write_bundle
from edgewise_protocol.errors import ProtocolError
from edgewise_protocol.manifest import Budget, Golden, Manifest, Requirements, TensorSpec
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

PI4, X86 = catalogue.load("raspberry-pi-4-64"), catalogue.load("x86-64")


def matmuls(width: int, count: int) -> bytes:
    """A model of `count` square products one after another."""
    weights = [numpy_helper.from_array(np.eye(width, dtype=np.float32), f"w{i}") for i in range(count)]
    names = ["x", *(f"h{i}" for i in range(1, count)), "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(count)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def bundle(
    path: Path,
    *,
    profile: str = "x86-64",
    latency_ms: float = 10.0,
    model: bytes | None = None,
    engine: str = "onnxruntime",
    format_: str = "onnx",
) -> Path:
    data = matmuls(8, 1) if model is None else model
    x = np.eye(8, dtype=np.float32)
    files = {"model.onnx": data, "golden.safetensors": save({"input.x": x, "output.y": x})}
    spec = {"dtype": "FP32", "shape": (-1, 8)}
    manifest = Manifest(
        spec_version="1.0",
        kind="inference",
        model="eye",
        version=3,
        profile=profile,
        requires=Requirements(engine=engine),
        format=format_,
        files=tuple(file_entry(name, content) for name, content in files.items()),
        inputs=(TensorSpec(name="x", **spec),),
        outputs=(TensorSpec(name="y", **spec),),
        model_file="model.onnx",
        golden=Golden(file="golden.safetensors", samples=8, atol=0, rtol=0),
        budget=Budget(latency_ms=latency_ms),
    )
    out = io.BytesIO()
    write_bundle(out, manifest, files)
    return write(path, out.getvalue())


def test_models_are_timed_in_turn_and_the_larger_takes_longer(tmp_path: Path) -> None:
    small, large = write(tmp_path / "small.onnx", matmuls(8, 1)), write(tmp_path / "large.onnx", matmuls(256, 12))
    told: list[float] = []
    done = bench([small, large], seconds=0.4, progress=lambda _text, share: told.append(share))
    first, second = done.report.timed
    assert (first.name, second.name) == ("small.onnx", "large.onnx")
    assert 2 * first.latencies.median_ms < second.latencies.median_ms
    assert [t.latencies.calls for t in done.report.timed] == [len(times) for times in done.times_ns]
    assert min(len(times) for times in done.times_ns) >= done.report.rounds >= 5
    assert 0 < first.model_mib < first.peak_mib and first.engine == "onnxruntime" and first.inputs == "made up"
    assert "no profile was asked for" in first.measured_on and first.checks == () and done.report.passed
    assert told[-1] == 1.0 and told == sorted(told)
    assert msgspec.json.decode(msgspec.json.encode(done.report), type=type(done.report)) == done.report


def test_a_bundle_brings_its_inputs_and_its_budget(tmp_path: Path) -> None:
    timed = bench([bundle(tmp_path / "a.ewb", latency_ms=1e-6)], seconds=0.1).report
    assert timed.timed[0].inputs == "golden" and timed.timed[0].profile == "x86-64"
    latency = next(c for c in timed.timed[0].checks if c.name == "median latency")
    assert not latency.passed and latency.bound == 1e-6
    assert timed.passed is not latency.binding, "a budget that binds refuses, another does not"
    other = prepare(tmp_path / "a.ewb", tmp_path / "laid", PI4, sample=None, threads=2)
    assert (other.profile, other.latency_budget_ms, other.task.threads) == (PI4, PI4.budget.latency_ms, 2)


def test_a_sample_is_what_a_bare_model_is_asked(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx", matmuls(8, 1))
    np.save(tmp_path / "x.npy", np.ones((4, 8), np.float32))
    assert bench([model], seconds=0.05, sample=tmp_path / "x.npy").report.timed[0].inputs == "sample"
    np.save(tmp_path / "x.npy", np.ones((4, 7), np.float32))
    with pytest.raises(SampleError, match=r"^m\.onnx"):
        bench([model], seconds=0.05, sample=tmp_path / "x.npy")


def test_where_is_told_in_each_of_its_kinds() -> None:
    plain = Host(machine="x86_64", cpu="Some CPU")
    own = Host(machine="x86_64", cpu="Some CPU", cpu_features=X86.cpu.features + X86.cpu.any_of)
    assert where(X86, own).kind == "own" and where(X86, own).binding
    assert where(X86, plain).kind == "architecture" and "does not bind" in where(X86, plain).text
    assert where(PI4, own).kind == "other" and "says nothing" in where(PI4, own).text
    assert where(None, own).kind == "host"
    assert not any(where(p, h).binding for p, h in ((X86, plain), (PI4, own), (None, own)))
    assert where(X86, read_host()).kind in ("own", "architecture", "other")


@pytest.mark.parametrize("arguments", [{"seconds": 0.0}, {"seconds": float("nan")}, {"threads": 0}, {"threads": 65}])
def test_arguments_are_bounded(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConverterError):
        bench([tmp_path / "m.onnx"], **arguments)
    with pytest.raises(ConverterError):
        bench([])


def test_what_cannot_be_timed_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        bench([write(tmp_path / "m.onnx", b"not a model")], seconds=0.05)
    data = bundle(tmp_path / "a.ewb").read_bytes()
    with pytest.raises(ProtocolError, match=r"^b\.ewb"):
        bench([write(tmp_path / "b.ewb", data[:-40])], seconds=0.05)
    with pytest.raises(EngineError, match=r"^c\.ewb"):
        bench([bundle(tmp_path / "c.ewb", model=b"no graph")], seconds=0.05)
    with pytest.raises(ModelFileError, match="cannot be read"):
        bench([tmp_path / "none.ewb"], seconds=0.05)


@pytest.mark.parametrize(("engine", "format_"), [("iree", "vmfb"), ("c99", "c99"), ("iree", "onnx")])
def test_machine_code_of_a_bundle_runs_on_request_alone(tmp_path: Path, engine: str, format_: str) -> None:
    path = bundle(tmp_path / "code.ewb", engine=engine, format_=format_)
    with pytest.raises(ProofMissingError, match=r"code\.ewb is machine code, .* --run-machine-code"):
        bench([path])
    asked = prepare(path, tmp_path / "there", None, sample=None, threads=1, machine_code=True)
    assert asked.task.engine == engine


def test_golden_inputs_are_those_of_one_request(tmp_path: Path) -> None:
    _, _, inputs = read_bundle(bundle(tmp_path / "a.ewb"))
    assert {name: array.shape for name, array in inputs.items()} == {"x": (1, 8)}


def test_a_process_that_hangs_or_dies_is_an_error_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_SLACK_S", 0.2)
    task = Task(model=str(write(tmp_path / "m.onnx", matmuls(8, 1))), format="onnx")
    with BenchProcess(task, "m") as child:
        held = child._child
        os.kill(held.pid, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(EngineError, match="no answer"):
            child.run(0.01)
        assert time.monotonic() - begun < 10
        os.kill(held.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="killed by signal 9"):
            child.run(0.02)
    assert held.returncode == -signal.SIGKILL


def test_numbers_are_made_up_the_same_each_time() -> None:
    spec = TensorSpec(name="x", dtype="FP16", shape=(-1, 5))
    assert made_up(spec).shape == (1, 5) and made_up(spec).dtype == np.float16
    assert np.array_equal(made_up(spec), made_up(spec)) and made_up(spec).any()
    assert not made_up(TensorSpec(name="i", dtype="INT64", shape=(2, -1))).any()


def test_onnx_checks_the_fixture() -> None:
    onnx.checker.check_model(onnx.load_model_from_string(matmuls(8, 2)))
