"""Danger: a quantizer ruins the answers, skips what it should narrow, or gives other bytes on another day."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgewise_converter.errors import PassError, UnchangedError
from edgewise_converter.passes.onnx_numbers import activation, blocks, weights
from edgewise_converter.passes.onnx_ranges import Range, by_entropy, by_percentile
from edgewise_converter.passes.registry import PASSES
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

INT8 = {"reduce_range": False}
BOUNDS: list[tuple[str, str, dict[str, Any], float]] = [
    ("conv_net", "onnx_int8", INT8, 0.03),
    ("conv_net", "onnx_int8", {"reduce_range": True}, 0.05),
    ("conv_net", "onnx_int8", {**INT8, "activations": "int8"}, 0.03),
    ("conv_net", "onnx_int8", {**INT8, "activations": "int8", "symmetric": True}, 0.05),
    ("conv_net", "onnx_int8", {**INT8, "chained": False}, 0.03),
    ("conv_net", "onnx_int8", {**INT8, "ranges": "percentile"}, 0.03),
    ("conv_net", "onnx_int8", {**INT8, "ranges": "entropy"}, 0.2),
    ("conv_net", "onnx_int8", {**INT8, "per_channel": False}, 0.05),
    ("products", "onnx_int8", {**INT8, "per_channel": False}, 0.05),
    ("products", "onnx_int8", INT8, 0.03),
    ("branches", "onnx_int8", INT8, 0.03),
    ("recurrent", "onnx_int8", INT8, 0.03),
    ("products", "onnx_int8_dynamic", {}, 0.03),
    ("branches", "onnx_int8_dynamic", {}, 0.03),
    ("products", "onnx_int8_dynamic", {"per_channel": False}, 0.03),
    ("recurrent", "onnx_int8_dynamic", {}, 0.03),
    ("looped", "onnx_int8_dynamic", {}, 0.05),
    ("conv_net", "onnx_int8_weights", {}, 0.02),
    ("products", "onnx_int8_weights", {}, 0.02),
    ("branches", "onnx_int8_weights", {}, 0.02),
    ("recurrent", "onnx_int8_weights", {}, 0.03),
    ("looped", "onnx_int8_weights", {}, 0.05),
    ("products", "onnx_int4", {}, 0.2),
    ("products", "onnx_int4", {"symmetric": False, "block_size": 16}, 0.2),
    ("products", "onnx_int4", {"compute": "int8"}, 0.2),
    ("branches", "onnx_int4", {}, 0.2),
    ("looped", "onnx_int4", {}, 0.4),
    ("conv_net", "onnx_float16", {}, 1e-3),
    ("branches", "onnx_float16", {}, 1e-3),
    ("looped", "onnx_float16", {}, 1e-3),
    ("conv_net", "onnx_float16", {"compute": "float16"}, 5e-3),
]


@pytest.mark.parametrize(("case", "name", "settings", "bound"), BOUNDS)
def test_the_answers_stay_near_and_are_not_the_same(
    cases: Any, case: str, name: str, settings: dict[str, Any], bound: float
) -> None:
    found = cases[case].through(name, **settings)
    assert 0 < cases[case].error(found.data) <= bound
    assert found.precision == PASSES[name].precision
    onnx.checker.check_model(onnx.load_from_string(found.data), full_check=True)


def operators(data: bytes) -> list[str]:
    def walk(graph: Any) -> Any:
        for node in graph.node:
            yield node.op_type
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from walk(attribute.g)

    return list(walk(onnx.load_from_string(data).graph))


def kernels(data: bytes, folder: Path) -> list[str]:
    """What onnxruntime makes of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return operators((folder / "optimized.onnx").read_bytes())


def test_a_convolutional_net_stays_in_bytes_from_end_to_end(cases: Any, tmp_path: Path) -> None:
    found = kernels(cases["conv_net"].through("onnx_int8", **INT8).data, tmp_path)
    assert found.count("QLinearConv") == 3 and not {"Conv", "Relu", "Clip", "Add", "Gemm"} & set(found)
    assert {"QLinearAdd", "QLinearGlobalAveragePool", "QGemm"} <= set(found)
    assert found.count("QuantizeLinear") == 1, "at the door alone"
    assert found.count("DequantizeLinear") == 0, "the last product gives float32 by itself"


def test_without_chains_only_the_heavy_operators_are_narrow(cases: Any, tmp_path: Path) -> None:
    found = kernels(cases["conv_net"].through("onnx_int8", **INT8, chained=False).data, tmp_path)
    assert found.count("QLinearConv") == 3 and "QGemm" in found
    assert "QLinearAdd" not in found and "QLinearGlobalAveragePool" not in found


def test_dynamic_products_become_one_kernel_each_and_an_lstm_its_own(cases: Any, tmp_path: Path) -> None:
    found = kernels(cases["products"].through("onnx_int8_dynamic").data, tmp_path)
    assert "MatMul" not in found and "Gemm" not in found
    assert sum(name in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat") for name in found) == 3
    assert "DynamicQuantizeLSTM" in operators(cases["recurrent"].through("onnx_int8_dynamic").data)


def test_int8_weights_alone_shrink_the_file_and_leave_the_arithmetic_in_float(cases: Any) -> None:
    for case in ("conv_net", "recurrent"):
        before, found = cases[case].artifact.data, cases[case].through("onnx_int8_weights").data
        assert sorted(op for op in operators(found) if op != "DequantizeLinear") == sorted(operators(before))
    assert len(found) < 0.5 * len(before)


def test_int4_narrows_gemm_and_matmul_alike_and_the_file_shrinks(cases: Any) -> None:
    found = cases["products"].through("onnx_int4").data
    assert operators(found).count("MatMulNBits") == 3 and not {"Gemm", "MatMul"} & set(operators(found))
    assert len(found) < 0.6 * len(cases["products"].artifact.data)


@pytest.mark.parametrize(
    ("case", "name", "settings"),
    [
        ("conv_net", "onnx_int8", INT8),
        ("products", "onnx_int8", INT8),
        ("branches", "onnx_int8", INT8),
        ("recurrent", "onnx_int8_dynamic", {}),
        ("looped", "onnx_int8_dynamic", {}),
        ("conv_net", "onnx_int8_weights", {}),
        ("recurrent", "onnx_int8_weights", {}),
        ("looped", "onnx_int8_weights", {}),
        ("products", "onnx_int4", {}),
        ("conv_net", "onnx_float16", {}),
    ],
)
def test_any_layer_can_be_quantized_alone_and_any_be_kept(
    cases: Any, case: str, name: str, settings: dict[str, Any]
) -> None:
    names = cases[case].layers(name)
    assert len(set(names)) == len(names) >= 1
    whole = cases[case].through(name, **settings).data
    for layer in names:
        others = tuple(n for n in names if n != layer)
        try:
            alone = cases[case].through(name, **settings, keep_float=others).data
        except UnchangedError:
            assert case == "branches" and "slow" not in layer and layer != "shared", "only what no request reaches"
            continue
        assert cases[case].error(alone) > 0
        if others:
            assert alone != whole
    with pytest.raises(UnchangedError, match=f"{name} changed nothing.*kept in float"):
        cases[case].through(name, **settings, keep_float=names)
    with pytest.raises(PassError, match="no layer"):
        cases[case].through(name, **settings, keep_float=("no such layer",))


def test_a_branch_that_no_request_takes_stays_float(cases: Any) -> None:
    model = onnx.load_from_string(cases["branches"].through("onnx_int8", **INT8).data)
    (choice,) = (node for node in model.graph.node if node.op_type == "If")
    kinds = {a.name: {node.op_type for node in a.g.node} for a in choice.attribute}
    assert "QuantizeLinear" in kinds["else_branch"] and "QuantizeLinear" not in kinds["then_branch"]


@pytest.mark.parametrize(
    ("case", "name", "settings", "sought"),
    [
        ("wordy", "onnx_int8", INT8, "Conv, Gemm, MatMul"),
        ("looped", "onnx_int8", INT8, "Conv, Gemm, MatMul"),
        ("conv_net", "onnx_int8", {**INT8, "operators": ("MatMul",)}, "MatMul"),
        ("wordy", "onnx_int8_dynamic", {}, "Gemm, LSTM, MatMul"),
        ("wordy", "onnx_int8_weights", {}, "at least 64 constant float32 weights"),
        ("products", "onnx_int8_dynamic", {"operators": ("LSTM",)}, "LSTM"),
        ("wordy", "onnx_int4", {}, "Gemm and MatMul"),
        ("wordy", "onnx_float16", {}, "float32 weights"),
    ],
)
def test_what_changes_nothing_says_its_name_and_what_it_looks_for(
    cases: Any, case: str, name: str, settings: dict[str, Any], sought: str
) -> None:
    with pytest.raises(UnchangedError, match=f"^{name} changed nothing: it looks for .*{sought}"):
        cases[case].through(name, **settings)


def test_float16_arithmetic_says_why_it_does_not_enter_branches(cases: Any) -> None:
    with pytest.raises(PassError, match=r"'choice' \(If\) with graphs inside.*compute='float32'"):
        cases["branches"].through("onnx_float16", compute="float16")


def test_float16_leaves_what_it_cannot_hold(cases: Any) -> None:
    import copy
    import dataclasses

    model = copy.deepcopy(cases["conv_net"].model)
    (w1,) = (t for t in model.graph.initializer if t.name == "w1")
    array = onnx.numpy_helper.to_array(w1) * np.float32(1e6)
    w1.CopyFrom(onnx.numpy_helper.from_array(array, "w1"))
    large = dataclasses.replace(cases["conv_net"], model=model)
    for compute in ("float32", "float16"):
        data = large.through("onnx_float16", compute=compute).data
        kept = {t.data_type for t in onnx.load_from_string(data).graph.initializer if list(t.dims) == [8, 2, 3, 3]}
        assert kept == {onnx.TensorProto.FLOAT}
        assert large.error(data) < 5e-3


def test_calibration_with_nan_is_told_with_the_tensor(cases: Any) -> None:
    import dataclasses

    from edgewise_converter.requests import Requests

    x = cases["conv_net"].requests.feeds["x"].copy()
    x[3, 0, 0, 0] = np.nan
    with pytest.raises(PassError, match=r"tensor 'x' gets NaN"):
        dataclasses.replace(cases["conv_net"], requests=Requests({"x": x})).through("onnx_int8", **INT8)


def digests(cases: Any) -> str:
    parts = []
    for case, name, settings in [
        ("conv_net", "onnx_int8", INT8),
        ("branches", "onnx_int8", {**INT8, "ranges": "entropy"}),
        ("recurrent", "onnx_int8_dynamic", {}),
        ("products", "onnx_int4", {}),
        ("conv_net", "onnx_float16", {}),
        ("conv_net", "onnx_float16", {"compute": "float16"}),
        ("wordy", "onnx_simplify", {}),
        ("wordy", "onnx_fix_shapes", {}),
        ("products", "onnx_opset", {"opset": 21}),
        ("conv_net", "onnx_ort", {}),
    ]:
        parts.append(hashlib.sha256(cases[case].through(name, **settings).data).hexdigest()[:16])
    return " ".join(parts)


def test_bytes_are_the_same_in_another_process_with_another_hash_seed(cases: Any) -> None:
    here = Path(__file__).parent
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import conftest, test_lossy\n"
        "print(test_lossy.digests({name: build() for name, build in conftest.graphs.CASES.items()}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(here)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == digests(cases).split()


FINITE = st.floats(-1e4, 1e4, width=32)


@given(arrays(np.float32, (5, 7), elements=FINITE), st.sampled_from([0, 1, None]), st.booleans())
def test_int8_weights_are_within_half_a_step(array: Any, axis: int | None, reduce_range: bool) -> None:
    found, scale = weights(array, axis, reduce_range=reduce_range)
    assert np.abs(found.astype(int)).max() <= (64 if reduce_range else 127)
    shape = {0: (5, 1), 1: (1, 7), None: ()}[axis]
    steps = scale.reshape(shape)
    assert (np.abs(found * steps - array) <= 0.5001 * steps + 1e-6).all()


@given(FINITE, FINITE, st.booleans(), st.booleans())
def test_activations_hit_zero_and_reach_over_their_range(a: float, b: float, signed: bool, symmetric: bool) -> None:
    low, high = min(a, b), max(a, b)
    steps = activation(low, high, signed=signed, symmetric=symmetric)
    least, most = (-128, 127) if signed else (0, 255)
    assert least <= steps.zero <= most
    slack = float(steps.scale) * 1.01
    assert (least - steps.zero) * float(steps.scale) <= min(low, 0) + slack
    assert (most - steps.zero) * float(steps.scale) >= max(high, 0) - slack


@given(arrays(np.float32, (21, 3), elements=FINITE), st.sampled_from([16, 32]), st.booleans())
@example(np.full((21, 3), 1e-45, np.float32), 16, True)
@example(np.full((21, 3), 1e-45, np.float32), 16, False)
def test_int4_blocks_are_within_a_step(array: Any, size: int, symmetric: bool) -> None:
    packed, scale, zeros = blocks(array, size, symmetric=symmetric)
    count = -(-21 // size)
    steps = np.stack([packed & 15, packed >> 4], -1).reshape(3, count, size).astype(np.float64)
    if zeros is None:
        zero = np.full((3, count), 8.0)
    else:
        pairs = zeros.reshape(3, -1)
        zero = np.stack([pairs & 15, pairs >> 4], -1).reshape(3, -1)[:, :count].astype(np.float64)
    step = scale.reshape(3, count, 1)
    real = ((steps - zero[..., None]) * step).reshape(3, -1)[:, :21].T
    worst = np.repeat(np.abs(step[..., 0]), size, axis=1)[:, :21].T
    assert (np.abs(real - array) <= 1.001 * worst + 1e-6).all()


def test_a_percentile_cuts_an_outlier_off_and_entropy_finds_the_bulk() -> None:
    values = np.random.default_rng(3).normal(size=20_000)
    values[0] = 60.0
    whole = Range(float(values.min()), float(values.max()))
    histogram = np.histogram(values, 2048, (whole.low, whole.high))[0]
    cut = by_percentile(histogram, whole, 99.9)
    assert 3.0 < cut.high < 3.7 and -3.7 < cut.low < -3.0
    bulk = by_entropy(np.histogram(np.abs(values), 2048, (0, 60.0))[0], whole)
    assert 3.0 < bulk.high < 30.0 and bulk.low >= whole.low
    assert by_percentile(histogram, whole, 100.0) == whole
