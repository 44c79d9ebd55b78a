"""Danger: a model that C cannot express becomes C that is wrong; a file's names become code; equal files, unequal C."""

from __future__ import annotations

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
