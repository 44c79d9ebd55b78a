"""Danger: a pass changes what a finished file answers, changes nothing and says it did, or depends on chance."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgewise_converter.engines.named_tflite import NamedTflite
from edgewise_converter.errors import PassError, UnchangedError
from edgewise_converter.passes.artifact import Artifact
from edgewise_converter.passes.registry import PASSES
from edgewise_converter.passes.tflite_ranges import measure
from edgewise_converter.requests import Requests
from edgewise_converter.tflite_file.operators import operators
from edgewise_converter.tflite_file.reading import read
from edgewise_converter.tflite_file.signatures import sign
from edgewise_converter.tflite_file.tensors import is_constant, stored
from edgewise_converter.tflite_file.writing import write

QUANTIZING = ("tflite_float16", "tflite_int8_dynamic", "tflite_int8", "tflite_int16x8")
NARROW = {name: PASSES[name].precision for name in QUANTIZING}


def layers(name: str, data: bytes) -> tuple[str, ...]:
    found = PASSES[name].layers()
    assert found is not None
    return found(Artifact(data, "tflite", "float32"))


def answers(data: bytes, x: Any) -> Any:
    return NamedTflite(data).infer({"image": x})["scores"]


def error(files: Any, small: bytes, data: bytes) -> float:
    x = files.images(200, seed=9)
    difference = answers(data, x) - answers(small, x)
    return float(np.sqrt(np.mean(difference**2)))


@pytest.mark.parametrize("name", ["tflite_compact", "tflite_float32"])
@pytest.mark.parametrize("half", [False, True])
def test_lossless_passes_answer_the_same_to_the_bit(files: Any, name: str, half: bool) -> None:
    before = files.classifier(half=half)
    x = files.images(50)
    np.testing.assert_array_equal(answers(files.apply(name, before), x), answers(before, x))


@pytest.mark.parametrize(
    ("name", "rms", "size"),
    [
        ("tflite_float16", 5e-3, 0.56),
        ("tflite_int8_dynamic", 3e-2, 0.34),
        ("tflite_int8", 4e-2, 0.37),
        ("tflite_int16x8", 3e-2, 0.38),
    ],
)
@pytest.mark.parametrize("half", [False, True])
def test_narrow_forms_are_near_and_small(files: Any, name: str, rms: float, size: float, half: bool) -> None:
    before = files.classifier(half=half)
    data = files.apply(name, before)
    x = files.images(300, seed=9)
    got, want = answers(data, x), answers(before, x)
    assert len(np.unique(want.argmax(1))) >= 3
    assert 1e-6 < float(np.sqrt(np.mean((got - want) ** 2))) < rms
    assert (got.argmax(1) == want.argmax(1)).mean() > 0.97
    assert len(data) < size * len(files.classifier())
    loaded = NamedTflite(data)
    assert loaded.precision == NARROW[name]
    assert [(s.name, s.dtype) for s in (*loaded.inputs, *loaded.outputs)] == [("image", "FP32"), ("scores", "FP32")]


def test_full_int8_follows_the_specification(files: Any, small: bytes) -> None:
    """https://ai.google.dev/edge/litert/models/quantization_spec"""
    model = read(files.apply("tflite_int8", small))
    tensors = model.subgraphs[0].tensors
    names = [operator.name for operator in operators(model)]
    assert "QUANTIZE" not in names
    assert "DEQUANTIZE" not in names
    assert "RELU" not in names, "it moved into the convolution"
    assert {t.type for t in tensors} <= {9, 2}, "int8, and int32 for biases and shapes"
    for operator in operators(model):
        x, y = tensors[operator.inputs[0]], tensors[operator.outputs[0]]
        for activation in (x, y):
            assert len(activation.quantization.scale) == 1
        if operator.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            weights, bias = (tensors[i] for i in operator.inputs[1:])
            scales = np.array(weights.quantization.scale)
            assert set(weights.quantization.zeroPoint) == {0}
            assert np.abs(stored(model, weights).astype(int)).max() <= 127
            assert bias.type == 2
            assert set(bias.quantization.zeroPoint) == {0}
            np.testing.assert_allclose(bias.quantization.scale, x.quantization.scale[0] * scales, rtol=1e-5)
            if operator.name != "FULLY_CONNECTED":
                dimension = 3 if operator.name == "DEPTHWISE_CONV_2D" else 0
                assert weights.quantization.quantizedDimension == dimension
                assert len(scales) == weights.shape[dimension]
        if operator.name in ("MAX_POOL_2D", "RESHAPE"):
            assert (x.quantization.scale, x.quantization.zeroPoint) == (y.quantization.scale, y.quantization.zeroPoint)
        if operator.name == "SOFTMAX":
            assert (y.quantization.scale, y.quantization.zeroPoint) == ([1 / 256], [-128])


def test_tflite_micro_runs_the_int8_file_to_the_bit_as_the_reference_kernels_do(files: Any, small: bytes) -> None:
    micro = pytest.importorskip("tflite_micro")
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    data = files.apply("tflite_int8", small)
    oracle = micro.runtime.Interpreter.from_bytes(data)
    reference = Interpreter(model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    reference.allocate_tensors()
    (into,), (out,) = reference.get_input_details(), reference.get_output_details()
    x = np.random.default_rng(3).integers(-128, 128, (30, 1, 8, 8, 2)).astype(np.int8)
    seen = set()
    for sample in x:
        oracle.set_input(sample, 0)
        oracle.invoke()
        reference.set_tensor(into["index"], sample)
        reference.invoke()
        np.testing.assert_array_equal(oracle.get_output(0), reference.get_tensor(out["index"]))
        seen.add(oracle.get_output(0).tobytes())
    assert len(seen) > 5


@pytest.mark.parametrize(("name", "narrow"), [("tflite_int8", np.int8), ("tflite_int16x8", np.int16)])
def test_inputs_and_outputs_are_what_the_settings_say(files: Any, small: bytes, name: str, narrow: Any) -> None:
    from ai_edge_litert.interpreter import Interpreter

    for io, wanted in ((np.dtype(narrow).name, narrow), ("float32", np.float32)):
        data = files.apply(name, small, io=io)
        loaded = Interpreter(model_content=data)
        loaded.allocate_tensors()
        details = (*loaded.get_input_details(), *loaded.get_output_details())
        assert {d["dtype"] for d in details} == {wanted}
        assert error(files, small, data) < 4e-2


def test_the_same_inputs_give_the_same_bytes_here_and_in_another_process(
    files: Any, small: bytes, tmp_path: Path
) -> None:
    once = {name: files.apply(name, small) for name in QUANTIZING}
    assert {name: files.apply(name, small) for name in QUANTIZING} == once
    (tmp_path / "m.tflite").write_bytes(small)
    np.save(tmp_path / "x.npy", files.images(64))
    code = (
        "import numpy as np\n"
        "from edgewise_converter.engines.named_tflite import NamedTflite\n"
        "from edgewise_converter.passes.artifact import Artifact, Materials\n"
        "from edgewise_converter.passes.registry import PASSES\n"
        "from edgewise_converter.requests import Requests\n"
        f"folder = {str(tmp_path)!r}\n"
        "data = open(folder + '/m.tflite', 'rb').read()\n"
        "m = NamedTflite(data)\n"
        "materials = Materials('small', m.inputs, m.outputs, Requests({'image': np.load(folder + '/x.npy')}))\n"
        f"for name in {QUANTIZING!r}:\n"
        "    made = PASSES[name].load()(materials, Artifact(data, 'tflite', 'float32'), PASSES[name].config())\n"
        "    open(folder + '/' + name, 'wb').write(made.data)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={"PYTHONHASHSEED": "77"})
    assert {name: (tmp_path / name).read_bytes() for name in QUANTIZING} == once


@pytest.mark.parametrize("name", ["tflite_int8", "tflite_int16x8", "tflite_int8_dynamic"])
def test_one_layer_alone_is_quantized_or_kept(files: Any, small: bytes, name: str) -> None:
    found = layers(name, small)
    order = [o.layer for o in operators(read(small))]
    assert list(found) == sorted(found, key=lambda layer: order.index(layer if layer in order else "first/relu"))
    weighted = [layer for layer in found if "CONV" in layer or "FULLY" in layer or "relu" in layer]
    assert len(weighted) == 4

    def narrow(data: bytes) -> int:
        model = read(data)
        return sum(t.type == 9 and is_constant(model, t) for t in model.subgraphs[0].tensors)

    assert narrow(files.apply(name, small)) == 4
    for layer in weighted:
        others = tuple(other for other in found if other != layer)
        assert narrow(files.apply(name, small, keep_float=others)) == 1
        assert narrow(files.apply(name, small, keep_float=(layer,))) == 3
    for layer in set(found) - set(weighted):
        made = files.apply(name, small, keep_float=tuple(other for other in found if other != layer))
        assert NamedTflite(made).precision == NARROW[name], "a layer without weights can be quantized alone too"


def test_keeping_layers_in_float_brings_the_answers_nearer(files: Any, small: bytes) -> None:
    found = layers("tflite_int8", small)
    damage = [
        error(files, small, files.apply("tflite_int8", small, io="float32", keep_float=found[:kept]))
        for kept in (0, len(found) // 2, len(found) - 2)
    ]
    assert damage[0] > damage[2] > 0
    assert damage[1] < 1.5 * damage[0]


@pytest.mark.parametrize("name", QUANTIZING)
def test_a_pass_that_would_change_nothing_says_so_by_name(files: Any, small: bytes, name: str) -> None:
    with pytest.raises(UnchangedError):
        files.apply(name, small, keep_float=layers(name, small))
    net = files.Graph()
    plain = net.finish(net.op("RELU", [net.input("image", (1, 8, 8, 2))], (1, 8, 8, 2), label="y"))
    with pytest.raises(UnchangedError, match="changed nothing in small"):
        files.apply(name, plain)


@pytest.mark.parametrize("name", QUANTIZING)
@pytest.mark.parametrize("before", ["tflite_int8", "tflite_int8_dynamic"])
def test_a_quantized_file_is_not_quantized_again(files: Any, small: bytes, name: str, before: str) -> None:
    quantized = files.apply(before, small)
    if before == "tflite_int8_dynamic" and name in ("tflite_int8", "tflite_int16x8"):
        assert error(files, small, files.apply(name, quantized)) < 4e-2
        return
    words = "is quantized already" if before == "tflite_int8" else "has int8 weights already"
    with pytest.raises(UnchangedError, match=words):
        files.apply(name, quantized)


def test_int8_weights_behind_float_activations_are_widened_again(files: Any, small: bytes) -> None:
    dynamic = files.apply("tflite_int8_dynamic", small)
    assert NamedTflite(dynamic).precision == "int8-dynamic"
    widened = files.apply("tflite_float32", dynamic)
    assert NamedTflite(widened).precision == "float32"
    assert error(files, small, widened) < 2e-2
    assert files.apply("tflite_int8_dynamic", widened) == dynamic


def test_an_unknown_layer_is_named(files: Any, small: bytes) -> None:
    for name in QUANTIZING:
        with pytest.raises(PassError, match="no layer is called 'nonsense'; the file has"):
            files.apply(name, small, keep_float=("nonsense",))


def test_several_inputs_of_one_name_and_integers_are_calibrated(files: Any) -> None:
    g = np.random.default_rng(0)
    feeds = {
        "x": g.integers(0, 20, (64, 6)).astype(np.int32),
        "x_1": g.normal(size=(64, 4)).astype(np.float32),
    }
    before = files.two_inputs()
    data = files.apply("tflite_int8", before, feeds)
    loaded, source = NamedTflite(data), NamedTflite(before)
    assert [(s.name, s.dtype) for s in loaded.inputs] == [("x", "INT32"), ("x_1", "FP32")]
    got, want = (next(iter(m.infer(feeds).values())) for m in (loaded, source))
    assert np.abs(got - want).max() < 0.05 * np.ptp(want)


def test_ranges_are_the_true_smallest_and_largest_of_all_samples(files: Any) -> None:
    net = files.Graph()
    x = net.input("image", (1, 2))
    model = read(net.finish(net.op("RELU", [x], (1, 2), label="y")))
    sign(model)
    data = write(model)
    values = np.array([[0, 1], [-7, 2], [3, 100], [0, 0]] + [[0, 1]] * 60, np.float32)
    requests = Requests({"image": values})
    assert measure(data, requests, "minmax") == {0: (-7.0, 100.0), 1: (0.0, 100.0)}
    low, high = measure(data, requests, "average")[0]
    assert -1 < low < 0
    assert 1 < high < 20
    wide = Requests({"image": np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)})
    inner, outer = (measure(data, wide, "percentile", p)[0] for p in (90.0, 100.0))
    assert outer[0] < inner[0] < inner[1] < outer[1]
    assert outer == measure(data, wide, "minmax")[0]


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        (
            {"picture": np.zeros((4, 8, 8, 2), np.float32)},
            r"the samples are of \['picture'\]; the file takes \['image'\]",
        ),
        ({"image": np.zeros((4, 8, 9, 2), np.float32)}, "the file takes"),
        ({"image": np.full((4, 8, 8, 2), np.nan, np.float32)}, "NaN or infinite"),
    ],
)
def test_samples_that_do_not_fit_are_refused(files: Any, small: bytes, feeds: Any, words: str) -> None:
    for name in ("tflite_int8", "tflite_int16x8"):
        with pytest.raises(PassError, match=words):
            files.apply(name, small, feeds)


def test_what_is_no_file_is_refused_by_every_pass(files: Any, small: bytes) -> None:
    for name in (*QUANTIZING, "tflite_compact", "tflite_float32"):
        entry = PASSES[name]
        for data in (b"", small[:400], bytes(64)):
            with pytest.raises(PassError, match="small cannot be"):
                entry.load()(
                    files.materials(small, {"image": files.images(4)}),
                    Artifact(data, "tflite", "float32"),
                    entry.config(),
                )


def test_exports_of_torch_go_the_same_way(workshop: Any) -> None:
    exported = workshop.make("tflite-float32", "raspberry-pi-4-64")
    source = NamedTflite(exported.data)
    x = workshop.x[:200]
    want = source.infer({"x": x})["logits"]
    for name in QUANTIZING:
        entry = PASSES[name]
        made = entry.load()(workshop.model.materials, exported, entry.config())
        got = NamedTflite(made.data).infer({"x": x})["logits"]
        assert (got.argmax(1) == want.argmax(1)).mean() > 0.98, name
        assert len(layers(name, exported.data)) >= 1
        assert b"x" in made.data


def large_bias(files: Any, weight: float) -> bytes:
    """One channel of tiny weights and a large bias, one of common ones."""
    net = files.Graph()
    x = net.input("image", (1, 4))
    weights = np.array([[weight] * 4, [1, -1, 0.5, 0.25]], np.float32)
    return bytes(net.finish(net.dense(x, weights, np.array([30, 0.5], np.float32), (1, 2))))


@pytest.mark.parametrize("weight", [1e-5, 1e-9, 0.0])
@pytest.mark.parametrize(("name", "near"), [("tflite_int16x8", 0.01), ("tflite_int8", 0.2)])
def test_a_bias_of_more_than_32_bits_is_not_cut_off(files: Any, name: str, near: float, weight: float) -> None:
    data = large_bias(files, weight)
    x = np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype(np.float32)
    (want,) = NamedTflite(data).infer({"image": x}).values()
    (got,) = NamedTflite(files.apply(name, data, {"image": x})).infer({"image": x}).values()
    assert want[:, 0].min() > 29
    assert np.abs(got - want).max() < near


@pytest.mark.parametrize("io", ["float32", "narrow"])
@pytest.mark.parametrize(("name", "narrow"), [("tflite_int8", "int8"), ("tflite_int16x8", "int16")])
def test_outputs_that_the_graph_reads_itself_keep_names_and_values(files: Any, name: str, narrow: str, io: str) -> None:
    g = np.random.default_rng(4)
    net = files.Graph()
    x = net.input("image", (1, 4))
    weights = [g.normal(size=shape).astype(np.float32) for shape in ((6, 4), (3, 6))]
    hidden = net.op("TANH", [net.dense(x, weights[0], np.zeros(6, np.float32), (1, 6))], (1, 6), label="hidden")
    y = net.dense(hidden, weights[1], np.zeros(3, np.float32), (1, 3))
    shares = net.op("SOFTMAX", [y], (1, 3), options=files.schema.SoftmaxOptionsT(beta=1.0), label="shares")
    zero = net.constant(np.zeros((1, 3), np.float32), "zero")
    positive = net.op("GREATER", [y, zero], (1, 3), options=files.schema.GreaterOptionsT(), label="positive", kind=6)
    data = net.finish(y, positive, hidden, shares)
    x = g.normal(size=(64, 4)).astype(np.float32)
    before = NamedTflite(data)
    made = files.apply(name, data, {"image": x}, io=narrow if io == "narrow" else io)
    after = NamedTflite(made)
    assert [(s.name, s.shape) for s in after.outputs] == [(s.name, s.shape) for s in before.outputs]
    got, want = after.infer({"image": x}), before.infer({"image": x})
    for output, values in want.items():
        if values.dtype == np.float32:
            assert np.abs(got[output] - values).max() < 0.05 * np.ptp(values), output
        else:
            assert (got[output] == values).mean() > 0.97, output
