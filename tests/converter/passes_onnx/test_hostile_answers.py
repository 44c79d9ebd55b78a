"""Danger: an ONNX file that was sound when it was checked is another one in the engine, or never answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from edgewise_converter.engines import named_onnx
from edgewise_converter.engines.named_onnx import NamedOnnx
from edgewise_converter.engines.opening import open_named
from edgewise_converter.errors import EngineError
from onnx import TensorProto, helper
from passes_onnx_graphs import make, model_of, value


def until_positive() -> bytes:
    """Gives (1, 4) back where nothing in it is above 0, and else never."""
    body = helper.make_graph(
        [
            make("ReduceMax", ["v"], ["most"], keepdims=0),
            make("Greater", ["most", "zero"], ["still"]),
            make("Identity", ["v"], ["next"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("v", [1, 4])],
        [value("still", [], TensorProto.BOOL), value("next", [1, 4])],
    )
    yes = onnx.numpy_helper.from_array(np.array(True), "yes")
    zero = onnx.numpy_helper.from_array(np.array(0, np.float32), "zero")
    model = model_of(
        [make("Loop", ["", "yes", "x"], ["y"], body=body)], [value("x", [1, 4])], [value("y", [1, 4])], [yes, zero]
    )
    return bytes(model.SerializeToString())


def test_a_loop_that_ends_on_the_first_request_alone_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_onnx, "FIRST_S", 0.4)
    model = NamedOnnx(until_positive())
    zeros, ones = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert model.infer({"x": zeros})["y"].tolist() == zeros.tolist()
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"no answer to a request after 0\.4 s: .* a loop without an end"):
        model.infer({"x": ones})
    assert time.monotonic() - start < 5
    assert model.infer({"x": zeros})["y"].tolist() == zeros.tolist(), "what was ended does not end the next one"


def test_a_failure_that_was_in_time_keeps_its_own_words() -> None:
    model = NamedOnnx(until_positive())
    for _ in range(2):
        assert model.infer({"x": np.zeros((1, 4), np.float32)})["y"].shape == (1, 4)
        with pytest.raises(EngineError, match="fails on the model"):
            model.call({"x": np.zeros((1, 5), np.float32)})
        with pytest.raises(EngineError, match="fails on the model"):
            model.infer({"x": np.zeros((1, 5), np.float32)})


def test_the_format_that_was_checked_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    model = model_of([make("Neg", ["x"], ["y"])], [value("x", ["n", 4])], [value("y", ["n", 4])], [])
    graph = model.SerializeToString()
    options: Any = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    container = (tmp_path / "m.ort").read_bytes()
    assert container[4:8] == b"ORTM"
    x = np.ones((2, 4), np.float32)
    assert (open_named(graph, "onnx").infer({"x": x})["y"] == -1).all()
    assert (open_named(container, "ort").infer({"x": x})["y"] == -1).all()
    for data, claimed in ((container, "onnx"), (graph, "ort")):
        with pytest.raises(EngineError, match="cannot load"):
            open_named(data, claimed)  # type: ignore[arg-type]
