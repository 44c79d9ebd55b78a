"""Danger: a finished file that no device can take is signed anyway, or answers otherwise on the device."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from edgewise_agent.install.self_test_child import examine
from edgewise_converter.errors import EngineError, ModelFileError, SampleError
from edgewise_converter.importing.importer import Description, import_model
from edgewise_converter.importing.judgement import check_answers
from edgewise_converter.importing.model_file import MAX_IR, MAX_OPSET
from edgewise_converter.importing.samples import match, read_arrays
from edgewise_profiles import catalogue
from edgewise_protocol.bundle import BundleReader
from edgewise_protocol.manifest import TensorSpec, encode_manifest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

X86 = catalogue.load("x86-64")
W = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
B = np.array([0.1, -0.2, 0.3], np.float32)
X = np.random.default_rng(2).normal(size=(200, 4)).astype(np.float32)


@pytest.fixture
def tflite(tmp_path: Path) -> Any:
    """The agent tests' maker of TFLite files."""
    place = Path(__file__).resolve().parents[1] / "agent" / "engines" / "conftest.py"
    spec = importlib.util.spec_from_file_location("importing_model_files", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path / "models"
    folder.mkdir()
    return module.ModelFiles(folder)


def value(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def save_onnx(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], *constants: Any, **more: Any
) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    opsets = [helper.make_opsetid("", more.pop("opset", 20)), *more.pop("opsets", [])]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=more.pop("ir", 10)).SerializeToString())
    return path


def linear(path: Path, batch: int | str = "n", **more: Any) -> Path:
    return save_onnx(
        path,
        [helper.make_node("Gemm", ["x", "w", "b"], ["logits"])],
        [value("x", TensorProto.FLOAT, [batch, 4])],
        [value("logits", TensorProto.FLOAT, [batch, 3])],
        numpy_helper.from_array(W, "w"),
        numpy_helper.from_array(B, "b"),
        **more,
    )


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def take(model: Path, sample: Path, out: Path, *profiles: Any, **more: Any) -> Any:
    description = Description(**{"model": "own", "version": 3, **more})
    return import_model(model, sample, profiles or [X86], out, description)


def on_device(report: Any, folder: Path) -> Any:
    """What the device's self-test says of a bundle."""
    folder.mkdir()
    with Path(report.path).open("rb") as stream:
        reader = BundleReader(stream)
        manifest = reader.verify()
        for entry in manifest.files:
            (folder / entry.name).write_bytes(reader.read(entry.name))
        (folder / "manifest.json").write_bytes(encode_manifest(manifest))
    return manifest, examine(folder, 1)


@pytest.mark.parametrize("batch", ["n", 1, 8])
def test_an_onnx_file_becomes_a_bundle_that_passes_the_devices_self_test(batch: Any, tmp_path: Path) -> None:
    model = linear(tmp_path / "own.onnx", batch)
    labels = (X @ W + B).argmax(1)
    sample = npz(tmp_path / "s.npz", x=X.astype(np.float64), y=labels, **{"output.logits": X @ W + B})
    (report,) = take(model, sample, tmp_path / "out", task="classification", labels=("a", "b", "c"), origin="by hand")
    assert report.passed and report.accuracy == 1.0 and report.precision == "float32" and not report.notes
    manifest, verdict = on_device(report, tmp_path / "device")
    assert verdict.code == "", verdict.text
    assert manifest.inputs == (TensorSpec(name="x", dtype="FP32", shape=(-1, 4)),)
    assert manifest.metrics == {"accuracy": 1.0} and manifest.lineage["origin"] == "by hand"
    assert manifest.lineage["source_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    with Path(report.path).open("rb") as stream:
        assert BundleReader(stream).read("model.onnx") == model.read_bytes(), "the file goes in as it is"


def test_several_inputs_and_outputs_of_any_type_are_served(tmp_path: Path) -> None:
    model = save_onnx(
        tmp_path / "own.onnx",
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Add", ["rows", "x"], ["sum"]),
            helper.make_node("ArgMax", ["sum"], ["class"], axis=1, keepdims=0),
        ],
        [value("ids", TensorProto.INT64, ["n"]), value("x", TensorProto.FLOAT, ["n", 3])],
        [value("sum", TensorProto.FLOAT, ["n", 3]), value("class", TensorProto.INT64, ["n"])],
        numpy_helper.from_array(W * 1000, "table"),
    )
    ids = np.arange(120, dtype=np.int32) % 4
    sample = tmp_path / "s.safetensors"
    sample.write_bytes(save({"input.ids": ids, "input.x": X[:120, :3].copy()}))
    (report,) = take(model, sample, tmp_path / "out")
    manifest, verdict = on_device(report, tmp_path / "device")
    assert verdict.code == "", verdict.text
    assert [s.dtype for s in manifest.inputs] == ["INT64", "FP32"] and [s.dtype for s in manifest.outputs] == [
        "FP32",
        "INT64",
    ]
    rules = {t.output: t for t in manifest.golden.per_output}
    assert rules.keys() == {"sum", "class"} and all(t.outliers == 0.0 for t in rules.values()), "each is judged alone"
    assert (rules["class"].atol, rules["class"].rtol) == (0.0, 0.0), "whole numbers are equal"


def test_tensors_without_a_common_batch_are_one_request(tmp_path: Path) -> None:
    model = save_onnx(
        tmp_path / "own.onnx",
        [helper.make_node("Add", ["state", "x"], ["next"])],
        [value("x", TensorProto.FLOAT, [1, 4]), value("state", TensorProto.FLOAT, [2, 4])],
        [value("next", TensorProto.FLOAT, [2, 4])],
    )
    (report,) = take(model, npz(tmp_path / "s.npz", x=X[:1], state=X[:2]), tmp_path / "out")
    manifest, verdict = on_device(report, tmp_path / "device")
    assert verdict.code == "" and "one request" in report.notes[0]
    assert manifest.baseline_file == "" and manifest.inputs[1].shape == (2, 4)


@pytest.mark.parametrize(("given", "dtype"), [(np.float32, "FP32"), (np.int8, "INT8")])
def test_an_int8_tflite_file_is_served_in_the_form_of_its_sample(
    given: Any, dtype: str, tflite: Any, tmp_path: Path
) -> None:
    whole = np.random.default_rng(3).integers(-100, 100, (3, 4)).astype(np.int8)
    model = tflite.tflite_linear(
        whole, np.zeros(3, np.int32), dtype=np.int8, scales=((0.05, 0), (0.01, 0), (0.1, 3)), names=("x", "logits")
    )
    x = np.random.default_rng(4).integers(-128, 128, (150, 4))
    sample = npz(tmp_path / "s.npz", x=x.astype(np.int8) if given is np.int8 else (x * 0.05).astype(np.float32))
    profile = next(
        p
        for p in map(catalogue.load, catalogue.names())
        if ("tflite", "int8") in {(t.format, t.precision) for t in p.targets} and p.machine == "x86_64"
    )
    (report,) = take(model, sample, tmp_path / "out", profile)
    manifest, verdict = on_device(report, tmp_path / "device")
    assert verdict.code == "", verdict.text
    assert manifest.inputs[0].dtype == dtype and manifest.outputs[0].dtype == "FP32" and report.precision == "int8"


def test_a_tflite_float_file_is_bundled(tflite: Any, tmp_path: Path) -> None:
    model = tflite.tflite_linear(W.T.copy(), B, names=("x", "logits"))
    (report,) = take(model, npz(tmp_path / "s.npz", x=X), tmp_path / "out", task="regression")
    manifest, verdict = on_device(report, tmp_path / "device")
    assert verdict.code == "" and manifest.inputs[0].shape == (-1, 4) and manifest.format == "tflite"


def test_equal_inputs_give_equal_bundles(tmp_path: Path) -> None:
    model, sample = linear(tmp_path / "own.onnx"), npz(tmp_path / "s.npz", x=X)
    (first,), (second,) = take(model, sample, tmp_path / "a"), take(model, sample, tmp_path / "b")
    assert first.sha256 == second.sha256


def test_neither_torch_nor_the_exporters_are_needed(tmp_path: Path) -> None:
    model, sample = linear(tmp_path / "own.onnx"), npz(tmp_path / "s.npz", x=X)
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "litert_torch", "ai_edge_quantizer", "onnxscript", "edgewise_trainer"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
from pathlib import Path
from edgewise_converter.importing.importer import Description, import_model
from edgewise_profiles import catalogue
model, sample, out = map(Path, sys.argv[1:])
found = import_model(model, sample, [catalogue.load("x86-64")], out, Description(model="own", version=1))
print(found[0].passed)
"""
    command = [sys.executable, "-c", program, str(model), str(sample), str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


def test_a_file_over_the_budget_leaves_no_bundle(tmp_path: Path) -> None:
    small = msgspec.structs.replace(X86, budget=msgspec.structs.replace(X86.budget, model_size_kib=1))
    model = save_onnx(
        tmp_path / "own.onnx",
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["n", 4])],
        numpy_helper.from_array(np.zeros(4, np.float32), "w"),
        numpy_helper.from_array(np.zeros(1000, np.float32), "ballast"),
    )
    (report,) = take(model, npz(tmp_path / "s.npz", x=X), tmp_path / "out", small)
    assert not report.passed and report.path == "" and "model size" in report.misses()[0]
    assert not (tmp_path / "out").exists()


def test_a_form_that_the_profile_does_not_allow_is_refused_with_what_it_allows(tmp_path: Path) -> None:
    only = msgspec.structs.replace(X86, targets=tuple(t for t in X86.targets if t.format == "tflite"))
    with pytest.raises(ModelFileError, match="onnx-float32, which x86-64 does not allow; it allows tflite"):
        take(linear(tmp_path / "own.onnx"), npz(tmp_path / "s.npz", x=X), tmp_path / "out", only)


def _external_in_a_function(path: Path) -> Path:
    model = onnx.load_model(linear(path))
    weights = numpy_helper.from_array(np.ones(1, np.float32), "w")
    onnx.external_data_helper.set_external_data(weights, "../../etc/passwd", 0, 4)
    constant = helper.make_node("Constant", [], ["out"], value=weights)
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Hidden", [], ["out"], [constant], opset))
    path.write_bytes(model.SerializeToString())
    return path


def _external(path: Path) -> Path:
    model = onnx.load(linear(path))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../../etc/passwd", 0, 4)
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    return path


def _in_a_branch(path: Path) -> Path:
    weights = numpy_helper.from_array(B, "inner")
    onnx.external_data_helper.set_external_data(weights, "w.bin", 0, 4)
    weights.ClearField("raw_data")
    inner = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["z"])], "b", [], [value("z", TensorProto.FLOAT, [3])], [weights]
    )
    return save_onnx(
        path,
        [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
        [value("c", TensorProto.BOOL, [1])],
        [value("y", TensorProto.FLOAT, [3])],
    )


def _zipmap(path: Path) -> Path:
    return save_onnx(
        path,
        [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])],
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [
            helper.make_value_info(
                "y",
                helper.make_sequence_type_proto(
                    helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
                ),
            )
        ],
        opsets=[helper.make_opsetid("ai.onnx.ml", 3)],
    )


def _cut(path: Path) -> Path:
    path.write_bytes(linear(path).read_bytes()[:-20])
    return path


def _unknown_operator(path: Path) -> Path:
    return save_onnx(
        path,
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="acme")],
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["n", 4])],
        opsets=[helper.make_opsetid("acme", 1)],
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_external, "in another file.*save_as_external_data=False"),
        (_external_in_a_function, "in another file.*save_as_external_data=False"),
        (_in_a_branch, "in another file"),
        (_zipmap, "zipmap=False"),
        (_cut, "cut short"),
        (_unknown_operator, "Frobnicate"),
        (lambda p: linear(p, opset=MAX_OPSET + 1), "operator set"),
        (lambda p: linear(p, ir=MAX_IR + 1), "IR version"),
        (lambda p: (p.write_bytes(b"") and p) or p, "no nodes"),
        (lambda p: p.write_bytes(b"\0\0\0\0TFL3" + b"\0" * 99) and p, "is a TFLite file"),
        (lambda p: p.with_suffix(".pt"), "neither"),
        (lambda p: p, "cannot be read"),
    ],
)
def test_a_file_that_cannot_go_to_a_device_is_refused_by_name(make: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises((ModelFileError, EngineError), match=f"(?s){words}"):
        take(make(tmp_path / "own.onnx"), npz(tmp_path / "s.npz", x=X), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_tflite_file_is_refused(tflite: Any, tmp_path: Path) -> None:
    whole = tflite.tflite_linear(W.T.copy(), B)
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(ModelFileError, match="damaged or cut short"):
        take(whole, npz(tmp_path / "s.npz", x=X), tmp_path / "out")
    (tmp_path / "no.tflite").write_bytes(b"hello")
    with pytest.raises(ModelFileError, match="not a TFLite file"):
        take(tmp_path / "no.tflite", npz(tmp_path / "s.npz", x=X), tmp_path / "out")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X[:, :3]}, r"shape \[200, 3\]"),
        ({"x": np.where(X > 2, np.nan, X)}, "NaN"),
        ({"x": X[:0]}, "empty"),
        ({"q": X, "r": X}, "lacks the inputs 'x', and has 'q', 'r'"),
        ({"x": X, "y": np.zeros(3, np.int64)}, "200 class indices"),
        ({"x": X, "y": np.full(200, 50)}, r"name class 50; the model has 0 to \d+$"),
        ({"x": X, "output.nope": X}, "the sample has 'output.nope' that the model does not know.* and gives 'logits'"),
        ({"x": X, "output.logits": X @ W}, "differs from the expected"),
        ({"x": X, "output.logits": X}, "expected is"),
        ({"x": X, "output.logits": np.full_like(X @ W, np.nan)}, "differs from the expected"),
        ({"x": X.astype(np.complex64) + 1j}, "complex64"),
        ({"x": np.array([["a", "b", "c", "d"]])}, "cannot be read|<U1"),
    ],
)
def test_a_sample_that_the_model_does_not_take_is_refused(arrays: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=words):
        take(linear(tmp_path / "own.onnx"), npz(tmp_path / "s.npz", **arrays), tmp_path / "out", task="classification")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "want",
    [
        np.array([-100, 100], np.int8),
        np.array([-60000, 60000], np.float16),
        np.array([-3e38, 3e38], np.float32),
        np.array([-(2**62), 2**62], np.int64),
        np.array([0, 2**64 - 1], np.uint64),
    ],
)
def test_opposite_answers_are_not_expected_because_their_span_overflows(want: Any) -> None:
    check_answers({"y": want}, {"y": want}, "float32")
    with pytest.raises(SampleError, match="differs from the expected one by 100 %"):
        check_answers({"y": want[::-1].copy()}, {"y": want}, "float32")


@pytest.mark.parametrize("far", [np.array([-1.7e308, 1.7e308]), np.array([0, np.inf])])
def test_expected_answers_without_a_span_are_refused(far: Any) -> None:
    with pytest.raises(SampleError, match="infinite, or span more than"):
        check_answers({"y": np.array([0.0, 1.0])}, {"y": far}, "float32")


def test_booleans_are_held_to_what_was_expected(tmp_path: Path) -> None:
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    model = save_onnx(
        tmp_path / "own.onnx",
        [helper.make_node("Greater", ["x", "zero"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.BOOL, ["n", 4])],
        zero,
    )
    (report,) = take(model, npz(tmp_path / "s.npz", x=X, **{"output.y": X > 0}), tmp_path / "out")
    assert report.passed
    for wrong, words in ((X < 0, "differs from the expected"), (np.full(X.shape, "yes"), "are <U3; numbers or")):
        with pytest.raises(SampleError, match=words):
            take(model, npz(tmp_path / "s.npz", x=X, **{"output.y": wrong}), tmp_path / "out")


def test_answers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = save_onnx(
        tmp_path / "own.onnx",
        [helper.make_node("Log", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["n", 4])],
    )
    with pytest.raises(EngineError, match="'y' is NaN"):
        take(model, npz(tmp_path / "s.npz", x=X), tmp_path / "out")


def test_a_small_sample_is_taken_with_a_note(tmp_path: Path) -> None:
    (report,) = take(linear(tmp_path / "own.onnx"), npz(tmp_path / "s.npz", anything=X[:5]), tmp_path / "out")
    assert "drift can hardly be told" in report.notes[0]


def test_a_sample_of_python_objects_or_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SampleError, match="cannot be read"):
        read_arrays(tmp_path / "o.npy")
    import zipfile

    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        for _ in range(1100):
            file.write(bytes(1 << 20))
    with pytest.raises(SampleError, match="unpacks to more"):
        read_arrays(tmp_path / "b.npz")


@given(data=st.binary(max_size=300), suffix=st.sampled_from([".npz", ".npy", ".safetensors"]), head=st.booleans())
def test_any_bytes_as_a_sample_are_read_or_refused(
    data: bytes, suffix: str, head: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    if head:
        good = io.BytesIO()
        np.savez(good, x=X[:2]) if suffix == ".npz" else np.save(good, X[:2])
        whole = save({"x": X[:2].copy()}) if suffix == ".safetensors" else good.getvalue()
        cut = len(data) % len(whole)
        data = whole[:cut] + data + whole[cut + len(data) :]
    path.write_bytes(data)
    with contextlib.suppress(SampleError):
        read_arrays(path)


def test_the_only_input_may_have_any_name_in_the_sample() -> None:
    spec = (TensorSpec(name="serving_default_x:0", dtype="FP32", shape=(-1, 4)),)
    assert match({"pictures": X}, spec, (), -1).inputs["serving_default_x:0"].shape == (200, 4)


def test_the_accuracy_of_a_single_logit_is_that_of_its_sign(tmp_path: Path) -> None:
    path = save_onnx(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["logit"])],
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("logit", TensorProto.FLOAT, ["n", 1])],
        numpy_helper.from_array(10 * W[:, :1], "w"),
    )
    np.savez(tmp_path / "s.npz", x=X, y=(X @ W[:, 0] > 0).astype(np.int64))
    about = Description(model="m", version=1, task="classification")
    (report,) = import_model(path, tmp_path / "s.npz", [X86], tmp_path / "out", about)
    assert report.accuracy == 1.0
