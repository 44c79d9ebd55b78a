"""Danger: samples that are misread, a state that is not carried, or a model whose fault is not told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgewise_converter.engines import named_onnx
from edgewise_converter.errors import ConverterError, EngineError, MetricError, ModelFileError, RunError, SampleError
from edgewise_converter.requests import Requests
from edgewise_converter.sources.feeding import Samples, Shape, requests_of, split
from edgewise_converter.sources.opening import open_model
from edgewise_converter.sources.reading import Wanted
from edgewise_protocol.manifest import StatePair, TensorSpec
from onnx import TensorProto, helper


def counter() -> bytes:
    """An ONNX file that adds its input to its state: `sum` comes out as `next`, and is fed back."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "sum"], ["next"]),
            helper.make_node("Identity", ["next"], ["y"]),
        ],
        "counter",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3]),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [2, 3]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3]),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, 3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture
def stateful(tmp_path: Path) -> Path:
    path = tmp_path / "counter.onnx"
    path.write_bytes(counter())
    return path


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_sequence_starts_at_zero_and_carries_the_models_own_state(stateful: Path, tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(8, 1, 3)
    samples = saved(tmp_path / "s.npz", x=x)
    model = open_model(str(stateful), Wanted(heldout=samples, state=(("sum", "next"),)))
    assert model.state == (StatePair(input="sum", output="next"),)
    assert not model.heldout.batched
    before = np.cumsum(np.broadcast_to(x, (8, 2, 3)), 0) - x
    both = np.concatenate([model.calibration.feeds["sum"], model.heldout.feeds["sum"]])
    assert sorted(map(tuple, both.reshape(8, 6))) == sorted(map(tuple, before.reshape(8, 6)))
    assert np.array_equal(model.reference_outputs()["y"], model.heldout.feeds["sum"] + model.heldout.feeds["x"])


def test_several_sequences_each_start_at_zero(stateful: Path, tmp_path: Path) -> None:
    x = np.ones((3, 4, 1, 3), np.float32)
    model = open_model(str(stateful), Wanted(heldout=saved(tmp_path / "s.npz", x=x), state=(("sum", "next"),)))
    both = np.concatenate([model.calibration.feeds["sum"], model.heldout.feeds["sum"]])[:, 0, 0]
    assert sorted(both) == sorted([0, 1, 2, 3] * 3)


def test_samples_that_bring_their_state_are_requests(stateful: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    given = {"x": rng.normal(size=(6, 1, 3)).astype(np.float32), "sum": rng.normal(size=(6, 2, 3)).astype(np.float32)}
    model = open_model(str(stateful), Wanted(heldout=saved(tmp_path / "s.npz", **given), state=(("sum", "next"),)))
    assert np.array_equal(
        np.sort(np.concatenate([model.calibration.feeds["sum"], model.heldout.feeds["sum"]]), 0),
        np.sort(given["sum"], 0),
    )


def test_one_request_without_a_leading_axis_is_one_request(stateful: Path, tmp_path: Path) -> None:
    given = {"x": np.ones((1, 3), np.float32), "sum": np.zeros((2, 3), np.float32)}
    model = open_model(str(stateful), Wanted(heldout=saved(tmp_path / "s.npz", **given)))
    assert len(model.heldout) == len(model.calibration) == 1
    assert "one sample" in model.notes[0]


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ((("sum", "none"),), "none"),
        ((("x", "next"), ("sum", "y")), "every input"),
        ((("sum", "next"), ("sum", "y")), "twice"),
    ],
)
def test_a_state_that_the_model_does_not_have_is_refused(
    stateful: Path, tmp_path: Path, state: Any, named: str
) -> None:
    samples = saved(tmp_path / "s.npz", x=np.zeros((4, 1, 3), np.float32))
    with pytest.raises(SampleError, match=named):
        open_model(str(stateful), Wanted(heldout=samples, state=state))


BATCHED = Shape(
    (TensorSpec(name="x", dtype="FP32", shape=(-1, 3)),), (TensorSpec(name="y", dtype="FP32", shape=(-1, 2)),), -1
)


def test_one_file_is_split_the_same_way_each_time_and_no_sample_is_in_both() -> None:
    x = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    samples = requests_of({"x": x, "y": np.arange(1000)}, BATCHED, lambda feeds: feeds)
    calibration, heldout = split(samples, in_order=False)
    again, _ = split(samples, in_order=False)
    assert calibration.requests.sha256 == again.requests.sha256
    assert len(calibration.requests) == 500 and len(heldout.requests) == 500
    assert not set(calibration.y) & set(heldout.y)
    first, second = split(samples, in_order=True)
    assert list(first.y) == list(range(500)) and list(second.y) == list(range(500, 1000))


def test_a_label_for_several_samples_forbids_a_split() -> None:
    samples = Samples(Requests({"x": np.zeros((8, 3), np.float32)}), np.zeros(4, np.int64))
    with pytest.raises(SampleError, match="apart"):
        split(samples, in_order=False)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"x": np.zeros((20, 5), np.float32)}, "shape"),
        ({"x": np.full((20, 16), np.nan, np.float32)}, "NaN"),
        ({"x": np.zeros((0, 16), np.float32)}, "empty"),
        ({"z": np.zeros((20, 16), np.float32), "q": np.zeros(3)}, "lacks"),
        ({"x": np.zeros((20, 16), np.float32), "y": np.zeros(7, np.int64)}, "20 class indices"),
        ({"x": np.array(["a"] * 20)}, "cannot be read|shape|takes"),
    ],
    ids=["shape", "nan", "none", "names", "labels", "text"],
)
def test_samples_that_the_model_does_not_take_are_refused_by_name(
    even: Path, tmp_path: Path, arrays: Any, named: str
) -> None:
    with pytest.raises(SampleError, match=named):
        open_model(str(even), Wanted(calibration=saved(tmp_path / "s.npz", **arrays)))


def test_without_samples_the_options_are_named(even: Path) -> None:
    with pytest.raises(SampleError, match="--calibration"):
        open_model(str(even))


def test_a_metric_that_needs_labels_says_so(even: Path, samples: Path) -> None:
    with pytest.raises(SampleError, match="labels"):
        open_model(str(even), Wanted(heldout=samples, metric="top1"))
    with pytest.raises(MetricError, match="no metric"):
        open_model(str(even), Wanted(heldout=samples, metric="accuracy"))


def test_without_labels_agreement_stands_in_and_is_named(even: Path, samples: Path) -> None:
    model = open_model(str(even), Wanted(heldout=samples))
    assert model.metric == "agreement"
    assert any("evenly spread" in note for note in model.notes)


def test_a_truncated_file_is_refused(even: Path, samples: Path) -> None:
    even.write_bytes(even.read_bytes()[:200])
    with pytest.raises(ModelFileError):
        open_model(str(even), Wanted(heldout=samples))


def test_an_operator_that_no_device_has_is_named_with_its_node(tmp_path: Path, samples: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], name="node_7", domain="com.example")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    with pytest.raises(ConverterError, match="Frobnicate"):
        open_model(str(path), Wanted(heldout=samples))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        open_model(str(tmp_path / "none"))
    with pytest.raises(ModelFileError, match="no model"):
        open_model(str(tmp_path / "model.h5"))


FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, image):
        return torch.relu(self.layer(image))

class Stubborn(nn.Module):
    def forward(self, x):
        return x * 2 if float(x.sum()) > 0 else x

class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(1, 2, 2).sum(2)

def net():
    torch.manual_seed(0)
    return Net()

def stubborn():
    return Stubborn()

def fixed():
    return Fixed()

def broken():
    raise OSError("weights are gone")

class Named(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
    def forward(self, x):
        return {self.name: x * 2}

def scores():
    return Named("scores")

def logits():
    return Named("logits")

def no_module():
    return 3

def leaving():
    raise SystemExit(0)
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_factory_is_exported_with_a_free_batch_and_named_inputs(own_code: str, tmp_path: Path) -> None:
    samples = saved(tmp_path / "s.npz", image=np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32))
    model = open_model(f"{own_code}:net", Wanted(heldout=samples, name="net"))
    assert model.family == "torch"
    assert [(s.name, s.shape) for s in (*model.inputs, *model.outputs)] == [("image", (-1, 4)), ("output", (-1, 2))]
    assert model.reference_outputs()["output"].shape == (5, 2)
    assert open_model(f"{own_code}:net", Wanted(heldout=samples, name="net")).digest == model.digest


def test_a_module_without_a_free_batch_is_exported_for_one(own_code: str, tmp_path: Path) -> None:
    samples = saved(tmp_path / "s.npz", x=np.ones((6, 4), np.float32))
    model = open_model(f"{own_code}:fixed", Wanted(heldout=samples, name="fixed"))
    assert any("batch of 1" in note for note in model.notes)
    assert model.reference_outputs()["output"].shape == (3, 2)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        ("stubborn", "cannot export"),
        ("broken", "weights are gone"),
        ("no_module", "a torch.nn.Module is needed"),
        ("missing", "MODULE:FUNCTION"),
        ("leaving", "the factory .* failed: SystemExit"),
    ],
)
def test_a_factory_that_fails_says_how(own_code: str, tmp_path: Path, function: str, named: str) -> None:
    samples = saved(tmp_path / "s.npz", x=np.ones((6, 4), np.float32))
    with pytest.raises(ModelFileError, match=named):
        open_model(f"{own_code}:{function}", Wanted(heldout=samples, name="m"))


def test_factories_that_differ_in_an_outputs_name_are_different_models(own_code: str, tmp_path: Path) -> None:
    samples = saved(tmp_path / "s.npz", x=np.ones((6, 4), np.float32))
    found = [open_model(f"{own_code}:{name}", Wanted(heldout=samples, name="m")) for name in ("scores", "logits")]
    assert [m.outputs[0].name for m in found] == ["scores", "logits"]
    assert found[0].digest != found[1].digest
    assert open_model(f"{own_code}:scores", Wanted(heldout=samples, name="m")).digest == found[0].digest


def test_an_exported_program_is_read_and_a_truncated_one_refused(tmp_path: Path) -> None:
    import torch

    layer = torch.nn.Linear(4, 2)
    layer.training = False
    program = torch.export.export(layer, (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("n")},))
    path = tmp_path / "layer.pt2"
    torch.export.save(program, str(path))
    samples = saved(tmp_path / "s.npz", x=np.ones((8, 4), np.float32))
    model = open_model(str(path), Wanted(heldout=samples))
    assert (model.name, model.inputs[0].shape, model.outputs[0].shape) == ("layer", (-1, 4), (-1, 2))
    want = layer(torch.ones(4, 4)).detach().numpy()
    assert np.allclose(model.reference_outputs()["output"], want)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ModelFileError, match="cut short"):
        open_model(str(path), Wanted(heldout=samples))


def test_labels_of_a_class_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear(4, 3))
    samples = saved(tmp_path / "s.npz", x=np.ones((8, 4), np.float32), y=np.full(8, 3))
    with pytest.raises(SampleError, match=r"the class 3.*0 to 2"):
        open_model(str(path), Wanted(heldout=samples))


def test_values_beyond_an_inputs_range_are_refused_and_not_taken_for_infinite(tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear(4, 3))
    samples = saved(tmp_path / "s.npz", x=np.full((8, 4), 1e300))
    with pytest.raises(SampleError, match="beyond the range of FP32"):
        open_model(str(path), Wanted(heldout=samples))


def test_a_loop_without_an_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Add", ["v", "v"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1, 4]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [onnx.numpy_helper.from_array(np.array(True), "yes")],
    )
    path = tmp_path / "endless.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    monkeypatch.setattr(named_onnx, "FIRST_S", 0.5)
    model = open_model(str(path), Wanted(heldout=saved(tmp_path / "s.npz", x=np.ones((8, 4), np.float32))))
    with pytest.raises(EngineError, match="a loop without an end"):
        model.reference_outputs()


def test_a_run_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        open_model(str(tmp_path / "nothing"), Wanted(heldout=tmp_path / "s.npz"))


def linear(inputs: int, outputs: int) -> bytes:
    """An ONNX file of one matrix of ones, with a free batch."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", outputs])],
        [onnx.numpy_helper.from_array(np.ones((inputs, outputs), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_a_run_brings_its_own_samples(digits_run: Path, samples: Path) -> None:
    model = open_model(str(digits_run))
    assert (model.name, model.metric, model.family) == ("digits", "top1", "torch")
    assert model.y is not None and len(model.y) == len(model.heldout)
    with pytest.raises(SampleError, match="its own samples"):
        open_model(str(digits_run), Wanted(heldout=samples))


def test_opset_of_the_counter_is_what_was_written(stateful: Path) -> None:
    from edgewise_converter.passes.onnx_facts import versions

    assert versions(stateful.read_bytes()) == (17, 8)
    assert onnx.load_from_string(stateful.read_bytes()).graph.name == "counter"
