"""Danger: the runner answers otherwise than the agent would, or believes bytes that are no message."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgewise_agent.engines.quantize import Affine
from edgewise_agent.engines.quantize import dequantize as agents_dequantize
from edgewise_agent.engines.quantize import quantize as agents_quantize
from edgewise_converter.proof import runner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays


@given(
    arrays.arrays(np.float32, (7,), elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(2**-20, 1000.0, width=32),
    st.integers(-128, 127),
)
def test_integers_stand_for_real_numbers_as_on_the_device(x: Any, scale: float, zero_point: int) -> None:
    dtype = np.dtype(np.int8)
    stored = runner.quantize(x, scale, zero_point, dtype)
    by = Affine(scale, zero_point)
    assert (stored == agents_quantize(x, by, dtype, "x")).all()
    assert (runner.dequantize(stored, scale, zero_point) == agents_dequantize(stored, by)).all()


@pytest.mark.parametrize("dtype", runner.DTYPES.values())
def test_arrays_of_every_type_come_back(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    header, found = runner.unpack(runner.pack({"a": 1}, {"x": array, "empty": array[:0], "scalar": array[0, 1]}))
    assert header == {"a": 1}
    assert found["x"].dtype == np.dtype(dtype)
    assert (found["x"] == array).all()
    assert found["empty"].shape == (0, 3)
    assert found["scalar"].shape == ()


def test_bytes_that_are_no_message_are_refused() -> None:
    good = runner.pack({}, {"x": np.zeros(4, np.float32)})
    for bad in (b"", good[:7], good[:20], good[:-1], b"\xff" * 40, good.replace(b'"<f4"', b'"|O8"')):
        with pytest.raises((ValueError, KeyError, TypeError)):
            runner.unpack(bad)
    with pytest.raises(ValueError, match="array"):
        runner.unpack(runner.pack({}, {"x": np.zeros(10, np.float32)}).replace(b"[10]", b"[-1]"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="CPUID is x86's")
def test_features_are_those_that_linux_tells() -> None:
    text = Path("/proc/cpuinfo").read_text()
    flags = next(line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags"))
    assert runner.features("x86_64") == [name for name in runner._X86 if name in flags]


def spec(*shapes: list[int]) -> dict[str, Any]:
    return {"inputs": [{"name": f"i{n}", "shape": shape} for n, shape in enumerate(shapes)]}


def test_a_fixed_batch_is_answered_group_by_group_the_last_filled_up() -> None:
    seen = []

    def call(feeds: Any) -> dict[str, Any]:
        seen.append(len(feeds["i0"]))
        return {"y": feeds["i0"] * 2}

    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert (runner.answer(call, 2, spec([-1, 2]), {"i0": x})["y"] == 2 * x).all()
    assert seen == [2, 2, 2]
    seen.clear()
    runner.answer(call, None, spec([-1, 2]), {"i0": x})
    assert seen == [5]


def test_inputs_without_a_common_batch_are_one_call() -> None:
    feeds = {"i0": np.zeros((1, 512)), "i1": np.zeros((2, 1, 128)), "i2": np.zeros(())}
    seen: list[Any] = []
    runner.answer(lambda given: seen.append(given) or {}, 1, spec([-1, -1], [2, -1, 128], []), feeds)
    assert len(seen) == 1
    assert seen[0] is feeds


def test_a_file_that_could_be_of_two_formats_is_what_the_bundle_says() -> None:
    """Bytes 4 to 7 say ORTM, by which onnxruntime guesses a file of its own format."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [value("x", 1, ["n", 2])], [value("y", 1, ["n", 2])]
    )
    model = onnx.helper.make_model(graph, producer_name="ORTM", opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    data = model.SerializeToString()
    assert data[4:8] == b"ORTM"
    call, _ = runner.open_onnx(data, {"outputs": [{"name": "y"}], "format": "onnx"})
    assert (call({"x": np.ones((1, 2), np.float32)})["y"] == -1).all()
