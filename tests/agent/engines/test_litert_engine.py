"""The danger: integers taken for real numbers, rounding that is not TFLite's, samples lost in a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_agent.engines import InputError, ModelFileError, open_engine
from edgewise_agent.engines.quantize import Affine, quantize
from edgewise_protocol.manifest import TensorSpec
from hypothesis import given, settings
from hypothesis import strategies as st

X = TensorSpec(name="x", dtype="FP32", shape=(-1, 4))
LOGITS = TensorSpec(name="logits", dtype="FP32", shape=(-1, 3))
W = np.array([[0.5, -1, 0, 2], [1, 1, 1, 1], [-0.25, 0, 0.75, 0]], np.float32)
B = np.array([0.5, -1, 0], np.float32)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_float_answers_what_numpy_computes_for_any_number_of_samples(files: Any, batch: int, n: int) -> None:
    engine = open_engine(
        "litert", files.tflite_linear(W, B, batch=batch), files.manifest("litert", [X], [LOGITS], format="tflite")
    )
    x = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)
    found = engine.infer({"x": x})["logits"]
    assert found.shape == (n, 3)
    np.testing.assert_allclose(found, x @ W.T + B, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, -20), (np.uint8, 108)])
def test_quantized_files_take_and_give_real_numbers(files: Any, dtype: Any, zero: int) -> None:
    """Within one step of the output scale of what exact arithmetic gives, saturating at the type's ends."""
    sx, sw, sy = (0.05, zero), (2 / 127, 0), (0.1, zero)
    if dtype == np.uint8:
        sw = (2 / 127, 128)
    wq = np.clip(np.rint(W / sw[0]) + sw[1], *((0, 255) if dtype == np.uint8 else (-127, 127))).astype(dtype)
    bq = np.rint(B / (sx[0] * sw[0])).astype(np.int32)
    path = files.tflite_linear(wq, bq, dtype=dtype, scales=(sx, sw, sy))
    engine = open_engine("litert", path, files.manifest("litert", [X], [LOGITS], format="tflite"))
    x = np.random.default_rng(0).uniform(-3, 3, size=(20, 4)).astype(np.float32)
    found = engine.infer({"x": x})["logits"]
    assert found.dtype == np.float32
    limits = np.iinfo(dtype)
    low, high = (limits.min - zero) * 0.1, (limits.max - zero) * 0.1
    x_seen = (np.clip(np.rint(x / 0.05) + zero, limits.min, limits.max) - zero) * 0.05
    exact = np.clip(x_seen @ ((wq.astype(int) - sw[1]) * sw[0]).T + bq * sx[0] * sw[0], low, high)
    assert np.abs(found - exact).max() <= 0.1 + 1e-5
    assert len(np.unique(found)) > 20


def test_infinite_inputs_saturate_and_nan_is_refused(files: Any) -> None:
    wq, bq = np.ones((3, 4), np.int8), np.zeros(3, np.int32)
    path = files.tflite_linear(wq, bq, dtype=np.int8, scales=((1.0, 0), (1.0, 0), (4.0, 0)))
    engine = open_engine("litert", path, files.manifest("litert", [X], [LOGITS], format="tflite"))
    found = engine.infer({"x": np.array([[np.inf, 0, 0, 0], [-np.inf, 0, 0, 0]], np.float32)})["logits"]
    assert found[:, 0].tolist() == [128.0, -128.0]
    with pytest.raises(InputError, match="'x' holds NaN"):
        engine.infer({"x": np.array([[np.nan, 0, 0, 0]], np.float32)})


def test_integer_files_pass_unchanged_where_the_manifest_says_integers(files: Any) -> None:
    wq, bq = np.eye(3, 4, dtype=np.int8), np.zeros(3, np.int32)
    path = files.tflite_linear(wq, bq, dtype=np.int8, scales=((1.0, 0), (1.0, 0), (1.0, 0)))
    inputs = [TensorSpec(name="x", dtype="INT8", shape=(-1, 4))]
    outputs = [TensorSpec(name="logits", dtype="INT8", shape=(-1, 3))]
    engine = open_engine("litert", path, files.manifest("litert", inputs, outputs, format="tflite"))
    assert engine.infer({"x": np.array([[1, -2, 3, 4]], np.int8)})["logits"].tolist() == [[1, -2, 3]]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_rounds_as_tflites_own_kernel(session_files: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.dtype(np.int8), np.dtype(np.uint8)]))
    limits = np.iinfo(dtype)
    scale = float(np.float32(data.draw(st.sampled_from([0.5, 1.0, 0.1, 0.0123, 3.0, 1 / 3]))))
    zero = data.draw(st.integers(limits.min, limits.max))
    steps = data.draw(st.lists(st.integers(-600, 600), min_size=64, max_size=64))
    x = (np.array(steps, np.float32) * np.float32(scale / 2)).reshape(1, 64)
    path = session_files.tflite_quantize(scale, zero, dtype)
    kind: Any = "INT8" if dtype == np.int8 else "UINT8"
    manifest = session_files.manifest(
        "litert",
        [TensorSpec(name="x", dtype="FP32", shape=(-1, 64))],
        [TensorSpec(name="q", dtype=kind, shape=(-1, 64))],
        format="tflite",
    )
    theirs = open_engine("litert", path, manifest).infer({"x": x})["q"]
    ours = quantize(x, Affine(scale, zero), dtype, "x")
    # A half is where XNNPACK's kernel (half to even) and the reference kernel (half away) may differ, by one step.
    halves = np.isclose(np.abs(x / np.float32(scale)) % 1, 0.5, atol=1e-3)
    assert (ours[~halves] == theirs[~halves]).all()
    assert (np.abs(ours.astype(int) - theirs.astype(int)) <= 1).all()


def test_a_half_is_rounded_away_from_zero() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997], np.float32)
    assert quantize(x, Affine(1.0, 0), np.dtype(np.int8), "x").tolist() == [1, 2, 3, -1, -2, 0]


@pytest.mark.parametrize(
    ("x", "logits", "says"),
    [
        (TensorSpec(name="x", dtype="FP32", shape=(-1, 5)), LOGITS, r"\[-1, 5\] in the manifest, \[1, 4\]"),
        (TensorSpec(name="x", dtype="INT32", shape=(-1, 4)), LOGITS, "INT32 in the manifest, FP32"),
        (X, TensorSpec(name="logits", dtype="BOOL", shape=(-1, 3)), "BOOL in the manifest"),
    ],
)
def test_refuses_a_file_that_is_not_the_manifests(files: Any, x: Any, logits: Any, says: str) -> None:
    with pytest.raises(ModelFileError, match=says):
        open_engine("litert", files.tflite_linear(W, B), files.manifest("litert", [x], [logits], format="tflite"))


def test_names_decide_where_they_are_known(files: Any) -> None:
    """An output named `x` in a file whose input is `x` must not be taken by position."""
    path = files.tflite_linear(W, B, names=("x", "y"))
    wrong = files.manifest("litert", [X, TensorSpec(name="z", dtype="FP32", shape=(-1, 4))], [LOGITS], format="tflite")
    with pytest.raises(ModelFileError, match=r"names the inputs \['x', 'z'\]"):
        open_engine("litert", path, wrong)


def test_a_damaged_file_is_the_engines_error(files: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 64)
    with pytest.raises(ModelFileError, match="LiteRT cannot load"):
        open_engine("litert", bad, files.manifest("litert", [X], [LOGITS], format="tflite"))
