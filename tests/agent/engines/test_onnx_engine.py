"""The danger: a model that answers in another type, shape or order than its manifest promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from edgewise_agent.engines import EngineError, InputError, ModelFileError, NoEngineError, installed, open_engine
from edgewise_protocol.manifest import TensorSpec
from onnx import TensorProto, helper

W = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
B = np.array([0.5, -1, 0], dtype=np.float32)
X = TensorSpec(name="x", dtype="FP32", shape=(-1, 4))
LOGITS = TensorSpec(name="logits", dtype="FP32", shape=(-1, 3))


@pytest.fixture
def linear(files: Any) -> Any:
    return open_engine("onnxruntime", files.onnx_linear(W, B), files.manifest("onnxruntime", [X], [LOGITS]))


@pytest.mark.parametrize("n", [1, 2, 33])
def test_answers_what_numpy_computes(linear: Any, n: int) -> None:
    x = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)
    found = linear.infer({"x": x})
    assert found.keys() == {"logits"}
    assert found["logits"].dtype == np.float32
    np.testing.assert_allclose(found["logits"], x @ W + B, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"x": np.zeros((2, 5), np.float32)}, r"'x' has the shape \[-1, 4\]; got \[2, 5\]"),
        ({"x": np.zeros((4,), np.float32)}, r"'x' has the shape \[-1, 4\]; got \[4\]"),
        ({"x": np.zeros((1, 4), np.float64)}, "'x' is FP32; got FP64"),
        ({"x": np.zeros((0, 4), np.float32)}, "'x' is empty"),
        ({"y": np.zeros((1, 4), np.float32)}, "takes the inputs 'x'; got 'y'"),
        ({}, "takes the inputs 'x'; got none"),
    ],
)
def test_refuses_inputs_and_names_expected_and_got(linear: Any, inputs: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        linear.infer(inputs)


def test_a_fixed_batch_answers_any_number_of_samples(files: Any) -> None:
    engine = open_engine("onnxruntime", files.onnx_linear(W, B, batch=4), files.manifest("onnxruntime", [X], [LOGITS]))
    for n in (1, 4, 7):
        x = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)
        np.testing.assert_allclose(engine.infer({"x": x})["logits"], x @ W + B, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "onnx_type", "dtype"),
    [
        ("BOOL", TensorProto.BOOL, np.bool_),
        ("INT8", TensorProto.INT8, np.int8),
        ("INT16", TensorProto.INT16, np.int16),
        ("INT32", TensorProto.INT32, np.int32),
        ("INT64", TensorProto.INT64, np.int64),
        ("UINT8", TensorProto.UINT8, np.uint8),
        ("UINT16", TensorProto.UINT16, np.uint16),
        ("UINT32", TensorProto.UINT32, np.uint32),
        ("UINT64", TensorProto.UINT64, np.uint64),
        ("FP16", TensorProto.FLOAT16, np.float16),
        ("FP32", TensorProto.FLOAT, np.float32),
        ("FP64", TensorProto.DOUBLE, np.float64),
    ],
)
def test_every_type_passes_bit_for_bit(files: Any, name: Any, onnx_type: int, dtype: Any) -> None:
    manifest = files.manifest(
        "onnxruntime",
        [TensorSpec(name="x", dtype=name, shape=(-1, 2))],
        [TensorSpec(name="y", dtype=name, shape=(-1, 2))],
    )
    engine = open_engine("onnxruntime", files.onnx_identity(onnx_type), manifest)
    size = np.dtype(dtype).itemsize
    raw = np.random.default_rng(7).integers(0, 2 if name == "BOOL" else 256, (3, 2 * size), np.uint8)
    x = raw.view(dtype)
    y = engine.infer({"x": x})["y"]
    assert y.dtype == np.dtype(dtype)
    assert y.tobytes() == x.tobytes()


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ([TensorSpec(name="x", dtype="INT8", shape=(-1, 4))], [LOGITS], "INT8 in the manifest"),
        ([TensorSpec(name="x", dtype="FP32", shape=(-1, 9))], [LOGITS], r"shape \[-1, 9\] in the manifest"),
        ([TensorSpec(name="a", dtype="FP32", shape=(-1, 4))], [LOGITS], r"the inputs \['a'\]; the model file has"),
        ([X], [TensorSpec(name="z", dtype="FP32", shape=(-1, 3))], r"the outputs \['z'\]; the model file has"),
    ],
)
def test_refuses_a_file_that_is_not_the_manifests(files: Any, inputs: Any, outputs: Any, says: str) -> None:
    with pytest.raises(ModelFileError, match=says):
        open_engine("onnxruntime", files.onnx_linear(W, B), files.manifest("onnxruntime", inputs, outputs))


def test_the_manifest_says_the_format_and_not_the_files_name_or_first_bytes(files: Any, tmp_path: Path) -> None:
    graph = files.onnx_linear(W, B)
    container = tmp_path / "container.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(container)
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    onnx_manifest = files.manifest("onnxruntime", [X], [LOGITS])
    ort_manifest = msgspec.structs.replace(onnx_manifest, format="ort")
    x = np.ones((1, 4), np.float32)
    for path, name, manifest, other in (
        (graph, "graph.ort", onnx_manifest, ort_manifest),
        (container, "container.onnx", ort_manifest, onnx_manifest),
    ):
        renamed = tmp_path / name
        renamed.write_bytes(Path(path).read_bytes())
        found = open_engine("onnxruntime", renamed, manifest).infer({"x": x})
        np.testing.assert_allclose(found["logits"], x @ W + B, rtol=1e-6)
        with pytest.raises(ModelFileError, match="cannot load"):
            open_engine("onnxruntime", renamed, other)


def test_damaged_and_missing_files_are_the_engines_errors(files: Any, tmp_path: Path) -> None:
    manifest = files.manifest("onnxruntime", [X], [LOGITS])
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\x08\x07garbage" * 10)
    for path in (bad, tmp_path / "absent.onnx"):
        with pytest.raises(ModelFileError, match="onnxruntime cannot load"):
            open_engine("onnxruntime", path, manifest)


def test_a_failure_inside_the_runtime_is_the_engines_error(files: Any) -> None:
    """A Gather beyond its table is found only while it runs."""
    table = helper.make_tensor("t", TensorProto.FLOAT, [2, 1], [1.0, 2.0])
    path = files.save_onnx(
        helper.make_graph(
            [helper.make_node("Gather", ["t", "x"], ["y"])],
            "gather",
            [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
            [table],
        )
    )
    manifest = files.manifest(
        "onnxruntime",
        [TensorSpec(name="x", dtype="INT64", shape=(-1,))],
        [TensorSpec(name="y", dtype="FP32", shape=(-1, 1))],
    )
    engine = open_engine("onnxruntime", path, manifest)
    assert engine.infer({"x": np.array([1])})["y"].tolist() == [[2.0]]
    with pytest.raises(EngineError, match="onnxruntime failed") as caught:
        engine.infer({"x": np.array([5])})
    assert caught.value.code == "inference"


def test_unknown_engines_are_named(files: Any) -> None:
    with pytest.raises(NoEngineError, match=r"it knows .*litert, .*onnxruntime"):
        open_engine("tensorrt", files.onnx_linear(W, B), files.manifest("tensorrt", [X], [LOGITS]))


def test_installed_names_versions() -> None:
    found = installed()
    assert {"onnxruntime", "litert"} <= set(found)
    assert all(version[0].isdigit() for version in found.values())
