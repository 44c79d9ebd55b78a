"""Danger: a model that C cannot express becomes C that is wrong; a file's names become code; equal files, unequal C."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from edgewise_converter.c99.graph import UnsupportedModelError
from edgewise_converter.c99.source import generate
from edgewise_converter.errors import ModelFileError

HOSTILE = '*/ int evil(void) { return system("x"); } /* \\\n#include "/etc/passwd"'


def dense(
    g: Any, *, scales: Any = 0.02, shape: tuple[int, ...] = (5, 8), out: tuple[int, ...] = (1, 5), axis: int = 0
) -> bytes:
    x = g.input((1, 8), 0.1, name="x")
    weights = g.constant(np.arange(np.prod(shape), dtype=np.int8).reshape(shape), scales, axis=axis)
    bias = g.constant(np.array([1, -(2**31), 2**31 - 1, 0, 5], np.int32), 0.002)
    return bytes(g.build(g.op("FULLY_CONNECTED", [x, weights, bias], g.tensor(out, 0.3, name="y"), version=4)))


def test_names_of_the_file_do_not_reach_the_code(new_graph: Any, host: Any) -> None:
    g = new_graph()
    x = g.input((1, 4), 0.1, name=HOSTILE)
    y = g.op("QUANTIZE", [x], g.tensor((1, 4), 0.2, name=HOSTILE + "2"), schema.QuantizeOptionsT(), 2)
    data = g.build(y)
    sources = generate(data, HOSTILE)
    assert sources.input_names == (HOSTILE,)
    assert not any(b"evil" in text or b"passwd" in text for text in sources.files.values())
    host(data)


def test_equal_files_give_equal_code_and_other_weights_another_identity(new_graph: Any) -> None:
    one, again, other = (generate(dense(new_graph(), scales=s)) for s in (0.02, 0.02, 0.03))
    assert one.files == again.files and one.identity == again.identity
    assert one.identity != other.identity


def test_code_has_no_heap_no_recursion_and_refuses_null(new_graph: Any, host: Any) -> None:
    built = host(dense(new_graph()))
    text = b"".join(built.sources.files.values())
    assert not any(word in text for word in (b"malloc", b"calloc", b"alloca", b"stdlib.h", b"stdio.h"))
    assert built.null() == -1


def test_real_inputs_and_outputs_stay_outside(new_graph: Any, host: Any) -> None:
    g = new_graph()
    x = g.tensor((1, 4), kind=0, name="x")
    g.graph.inputs.append(x)
    a = g.op("QUANTIZE", [x], g.tensor((1, 4), 0.1, 2), schema.QuantizeOptionsT())
    b = g.op("ADD", [a, a], g.tensor((1, 4), 0.2, 2), schema.AddOptionsT(), 2)
    y = g.op("DEQUANTIZE", [b], g.tensor((1, 4), kind=0, name="y"), schema.DequantizeOptionsT(), 2)
    built = host(g.build(y))
    assert (built.sources.input_names, built.sources.output_names) == (("x",), ("y",))
    assert built.sources.inputs[0].scale == pytest.approx(0.1)
    (found,) = built.run(np.array([[2, 12, -8, 127]], np.int8))
    assert found.tolist() == [[2, 12, -8, 127]]


def refused(data: bytes, *words: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        generate(data, "digits")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_unknown_operator_is_named_with_its_place_and_what_there_is(new_graph: Any) -> None:
    g = new_graph()
    x = g.input((1, 4), 0.1)
    a = g.op("QUANTIZE", [x], g.tensor((1, 4), 0.1), schema.QuantizeOptionsT(), 2)
    y = g.op("HARD_SWISH", [a], g.tensor((1, 4), 0.1, name="swish"), schema.HardSwishOptionsT())
    refused(g.build(y), "HARD_SWISH (operator 1, 'swish')", "replace it", "CONV_2D")


def test_a_float_model_is_sent_to_the_quantizer(new_graph: Any) -> None:
    g = new_graph()
    x = g.tensor((1, 4), kind=0, name="x")
    g.graph.inputs.append(x)
    y = g.op("RELU", [x], g.tensor((1, 4), kind=0, name="y"))
    refused(g.build(y), "'x'", "float32", "tflite_int8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scales": np.full(8, 0.02), "axis": 1}, ("8 scales for 5 channels",)),
        ({"shape": (5, 7)}, ("size",)),
        ({"out": (1, 6)}, ("size",)),
        ({"out": (2, 5)}, ("size",)),
    ],
)
def test_shapes_and_scales_that_contradict_are_refused(
    change: dict[str, Any], words: tuple[str, ...], new_graph: Any
) -> None:
    refused(dense(new_graph(), **change), "FULLY_CONNECTED (operator 0", *words)


def test_weights_that_are_computed_are_refused(new_graph: Any) -> None:
    g = new_graph()
    x, w = g.input((1, 8), 0.1), g.input((5, 8), 0.1)
    refused(g.build(g.op("FULLY_CONNECTED", [x, w, -1], g.tensor((1, 5), 0.3))), "weights", "is computed")


def test_an_output_larger_than_the_filter_reaches_is_refused(new_graph: Any) -> None:
    g = new_graph()
    x = g.input((1, 4, 4, 1), 0.1)
    w = g.constant(np.ones((1, 3, 3, 1), np.int8), 0.1)
    options = schema.Conv2DOptionsT(padding=1, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    refused(g.build(g.op("CONV_2D", [x, w, -1], g.tensor((1, 4, 4, 1), 0.1), options, 3)), "output's shape")


def test_a_damaged_file_is_refused_and_not_read(new_graph: Any) -> None:
    data = dense(new_graph())
    for cut in (0, 7, len(data) // 2, len(data) - 3):
        with pytest.raises(ModelFileError):
            generate(data[:cut])


def test_every_single_byte_of_damage_gives_code_or_our_error(new_graph: Any, tmp_path: Path) -> None:
    data = dense(new_graph())
    random = np.random.default_rng(5)
    for place in random.integers(0, len(data), 150):
        broken = bytearray(data)
        broken[place] ^= 1 << int(random.integers(8))
        try:
            generate(bytes(broken))
        except (ModelFileError, UnsupportedModelError):
            continue


def test_a_constant_by_another_shape_keeps_its_values(new_graph: Any, host: Any, oracle: Any) -> None:
    g = new_graph()
    x = g.input((1, 4), 0.1)
    known = g.constant(np.array([[10], [20], [30], [40]], np.int8), 0.1)
    to = g.constant(np.array([1, 4], np.int32))
    view = g.op("RESHAPE", [known, to], g.tensor((1, 4), 0.1), schema.ReshapeOptionsT(newShape=[1, 4]))
    data = g.build(g.op("ADD", [x, view], g.tensor((1, 4), 0.2), schema.AddOptionsT(), 2))
    given = np.array([[1, -2, 3, -4]], np.int8)
    assert np.array_equal(host(data).run(given)[0], oracle(data, [given])[0])


def softmax(g: Any, depth: int) -> bytes:
    y = g.tensor((1, depth), 1 / 256, -128)
    return bytes(g.build(g.op("SOFTMAX", [g.input((1, depth), 0.1)], y, schema.SoftmaxOptionsT(beta=1.0), 2)))


def test_of_many_equal_classes_each_has_next_to_nothing(new_graph: Any, host: Any) -> None:
    """1/511 of 256 steps rounds to one; TFLite Micro shifts by more than 31 bits beyond that, and stops."""
    for depth, step in ((511, -127), (512, -128), (4095, -128)):
        (found,) = host(softmax(new_graph(), depth)).run(np.full((1, depth), 7, np.int8))
        assert (found == step).all(), depth
    sure = np.full((1, 4095), -128, np.int8)
    sure[0, 17] = 127
    (found,) = host(softmax(new_graph(), 4095)).run(sure)
    assert found[0, 17] == 127 and found.sum() == 127 - 128 * 4094
    refused(softmax(new_graph(), 4096), "SOFTMAX", "4096 classes")


def rescaled(g: Any, scale: float) -> bytes:
    y = g.tensor((1, 4), scale)
    return bytes(g.build(g.op("MUL", [g.input((1, 4), 1.0), g.input((1, 4), 1.0)], y, schema.MulOptionsT(), 2)))


def test_scales_out_of_all_proportion_are_refused(new_graph: Any) -> None:
    refused(rescaled(new_graph(), 2.0**-30), "MUL", "too small")
    refused(rescaled(new_graph(), 1e-44), "next to 0")
    generate(rescaled(new_graph(), 2.0**-20))


@pytest.mark.parametrize("change", [{"dilationHFactor": 1 << 30}, {"strideH": (1 << 31) - 1}, {"strideW": 0}])
def test_steps_that_32_bits_do_not_hold_are_refused(change: dict[str, int], new_graph: Any) -> None:
    g = new_graph()
    w = g.constant(np.ones((1, 3, 3, 1), np.int8), 0.1)
    steps = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, **change}
    options = schema.Conv2DOptionsT(padding=0, **steps)
    x, y = g.input((1, 4, 4, 1), 0.1), g.tensor((1, 4, 4, 1), 0.1)
    refused(g.build(g.op("CONV_2D", [x, w, -1], y, options, 3)), "CONV_2D", "no more than")


def test_a_tensor_that_is_written_twice_is_refused(new_graph: Any) -> None:
    g = new_graph()
    x, known = g.input((1, 4), 0.1), g.constant(np.ones((1, 4), np.int8), 0.1)
    for output in (x, known, g.op("QUANTIZE", [x], g.tensor((1, 4), 0.1), schema.QuantizeOptionsT(), 2)):
        count = len(g.graph.operators)
        g.op("QUANTIZE", [x], output, schema.QuantizeOptionsT(), 2)
        refused(g.build(g.op("ADD", [x, output], g.tensor((1, 4), 0.2), schema.AddOptionsT(), 2)), "value before")
        del g.graph.operators[count:]


def test_sums_wrap_and_stay_defined(new_graph: Any, tmp_path: Path) -> None:
    """Biases at both ends of 32 bits: whoever compiles the code without -fwrapv gets the same answers."""
    flags = ["-std=c99", "-fsanitize=undefined", "-fno-sanitize-recover=all", "-o", str(tmp_path / "program")]
    for name, text in generate(dense(new_graph())).files.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "main.c").write_text(
        '#include "model.h"\nint main(void) { int8_t x[8] = {127, 127, 127, 127, 127, 127, 127, 127}, y[5];\n'
        "  int bad = model_invoke(x, y); for (int i = 0; i < 8; ++i) x[i] = -128; return bad + model_invoke(x, y); }\n"
    )
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    subprocess.run(["gcc", *flags, str(tmp_path / "main.c"), str(tmp_path / "model.c")], check=True, timeout=60)
    done = subprocess.run([str(tmp_path / "program")], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
