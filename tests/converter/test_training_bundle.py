"""Danger: devices train on a graph that is not the one its specification describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgewise_converter import training_bundle
from edgewise_converter.errors import ConverterError, RunError
from edgewise_converter.training_bundle import build
from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.manifest import TensorSpec, TrainingSpec
from onnx import TensorProto, helper
from safetensors.numpy import load, save

SPEC = TrainingSpec(
    step_file="step.onnx",
    initial_file="weights.safetensors",
    x=TensorSpec(name="x", dtype="FP32", shape=(-1, 2)),
    y=TensorSpec(name="y", dtype="INT64", shape=(-1,)),
    params=(TensorSpec(name="w", dtype="FP32", shape=(2,)),),
    buffers=(TensorSpec(name="seen", dtype="INT64", shape=()),),
)
WEIGHTS = {"p.w": np.array([1, 2], np.float32), "b.seen": np.array(0, np.int64)}


def step_graph(*, without: str = "", domain: str = "") -> bytes:
    """A graph with a step's inputs and outputs: it moves `w` by `lr` times the sum of `x`."""

    def tensor(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    number = TensorProto.FLOAT
    inputs = [tensor("x", number, ["n", 2]), tensor("y", TensorProto.INT64, ["n"])]
    inputs += [tensor(n, number, []) for n in ("lr", "mu")]
    inputs += [tensor(n, number, [2]) for n in ("p.w", "m.w", "g.w")] + [tensor("b.seen", TensorProto.INT64, [])]
    outputs = [tensor("loss", number, []), tensor("correct", number, [])]
    outputs += [tensor(n, number, [2]) for n in ("new_p.w", "new_m.w")] + [tensor("new_b.seen", TensorProto.INT64, [])]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["loss"], keepdims=0),
        helper.make_node("Identity", ["mu"], ["correct"]),
        helper.make_node("Mul", ["loss", "lr"], ["move"], domain=domain),
        helper.make_node("Sub", ["p.w", "move"], ["new_p.w"]),
        helper.make_node("Identity", ["m.w"], ["new_m.w"]),
        helper.make_node("Identity", ["b.seen"], ["new_b.seen"]),
    ]
    graph = helper.make_graph(
        nodes, "step", [i for i in inputs if i.name != without], [o for o in outputs if o.name != without]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()


@pytest.fixture
def training_run(run_files: dict[str, bytes], tmp_path: Path) -> Any:
    def make(**changed: bytes) -> Path:
        import hashlib

        files = dict(run_files)
        files["weights.safetensors"] = changed.get("weights", save(WEIGHTS))
        files["training/step.onnx"] = changed.get("step", step_graph())
        files["training/training.json"] = changed.get("spec", msgspec.json.encode(SPEC))
        folder = tmp_path / "run"
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        record = json.loads(BASE_RECORD)
        record["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    return make


BASE_RECORD = json.dumps(
    {
        "spec_version": "1.0",
        "run": "r1",
        "model": "digits",
        "task": "classification",
        "input": {"name": "x", "dtype": "FP32", "shape": [-1, 1, 8, 8]},
        "output": {"name": "logits", "dtype": "FP32", "shape": [-1, 10]},
        "data": {"name": "digits", "fingerprint": "ab" * 32},
        "gate": {"passed": True},
        "config_sha256": "cd" * 32,
        "parent": "r0",
    }
)


def test_the_bundle_holds_the_step_the_weights_and_their_provenance(training_run: Any, tmp_path: Path) -> None:
    path = build(training_run(), tmp_path / "out", 4)
    assert path.name == "digits-4-training.ewb"
    with path.open("rb") as source:
        reader = BundleReader(source)
        manifest = reader.verify()
        assert (manifest.kind, manifest.profile, manifest.version) == ("training", "any", 4)
        assert manifest.requires.engine == "onnxruntime"
        assert manifest.requires.compatible == ()
        assert manifest.training == SPEC
        assert manifest.lineage["parent"] == "r0"
        assert reader.read("step.onnx") == step_graph()
        assert load(reader.read("weights.safetensors")).keys() == WEIGHTS.keys()
        subjects = {s["name"] for s in json.loads(reader.read("provenance.json"))["subject"]}
    assert subjects == {"step.onnx", "weights.safetensors"}


def test_equal_runs_give_equal_bytes(training_run: Any, tmp_path: Path) -> None:
    run = training_run()
    first = training_bundle.build(run, tmp_path / "a", 1).read_bytes()
    assert first == training_bundle.build(run, tmp_path / "b", 1).read_bytes()
    assert first != training_bundle.build(run, tmp_path / "a", 2).read_bytes()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"step": step_graph(without="new_p.w")}, "no input or output 'new_p.w'"),
        ({"step": step_graph(without="lr")}, "no input or output 'lr'"),
        ({"step": step_graph(domain="com.microsoft")}, "com.microsoft.Mul"),
        ({"step": b"\xff\xff\xff\xff"}, "not an ONNX file"),
        ({"weights": save({"p.w": WEIGHTS["p.w"]})}, "b.seen"),
        ({"weights": save({**WEIGHTS, "p.v": WEIGHTS["p.w"]})}, "p.v"),
        ({"weights": save({**WEIGHTS, "p.w": np.zeros(3, np.float32)})}, r"p.w is float32 \[3\]"),
        ({"weights": save({**WEIGHTS, "p.w": np.zeros(2, np.float64)})}, "p.w is float64"),
        ({"weights": save({**WEIGHTS, "p.w": np.array([1, np.nan], np.float32)})}, "NaN"),
        ({"weights": b"no"}, "not a safetensors file"),
        ({"spec": b"{}"}, "training.json is not valid"),
        ({"spec": msgspec.json.encode(msgspec.structs.replace(SPEC, initial_file="step.onnx"))}, "one name"),
    ],
)
def test_a_step_that_is_not_as_specified_is_refused(
    training_run: Any, tmp_path: Path, changed: dict[str, bytes], named: str
) -> None:
    with pytest.raises(RunError, match=named):
        training_bundle.build(training_run(**changed), tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_step_and_a_version_out_of_range_are_refused(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no training step"):
        training_bundle.build(digits_run, tmp_path / "out", 1)
    with pytest.raises(ConverterError, match="version"):
        training_bundle.build(digits_run, tmp_path / "out", 0)
